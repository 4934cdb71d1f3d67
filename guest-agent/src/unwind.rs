//! Stands in for the unwinder of the C++ runtime, in the program that is put into images: it ends at a panic and unwinds
//! nothing. What the standard library would print with it, a backtrace, is empty in a program without symbols; the
//! unwinder, and what reads debug information for it, would take a third of the program.
//!
//! The names are those of the Itanium C++ ABI for exceptions, level I.
#![expect(unsafe_code, reason = "the linker finds these by their bare names")]

use core::ffi::{c_int, c_void};

/// `_URC_END_OF_STACK`: there are no more frames.
const END_OF_STACK: c_int = 5;

/// SAFETY: the name is the ABI's, and nobody else defines it in a static program.
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Backtrace(_: *const c_void, _: *mut c_void) -> c_int {
    END_OF_STACK
}

/// Defines functions that are only called while something is unwound.
macro_rules! never {
    ($($name:ident),*) => {$(
        /// SAFETY: as above; whoever calls it, with whatever arguments, does not come back.
        #[unsafe(no_mangle)]
        extern "C" fn $name() -> ! {
            std::process::abort()
        }
    )*};
}

never!(
    _Unwind_DeleteException,
    _Unwind_FindEnclosingFunction,
    _Unwind_GetCFA,
    _Unwind_GetDataRelBase,
    _Unwind_GetIP,
    _Unwind_GetIPInfo,
    _Unwind_GetLanguageSpecificData,
    _Unwind_GetRegionStart,
    _Unwind_GetTextRelBase,
    _Unwind_RaiseException,
    _Unwind_Resume,
    _Unwind_SetGR,
    _Unwind_SetIP
);
