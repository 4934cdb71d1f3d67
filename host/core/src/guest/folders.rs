//! Files of the guest, looked at and changed in place.

use super::Guest;
use crate::link::{LinkError, clean, unexpected};
use guestline_files::ops::MAX_LISTED;
use guestline_protocol::{
    ByteBuf, FileInfo, FolderEntry, ListRequest, MakeFolderRequest, RemoveRequest, Reply, Request,
    StatRequest,
};

/// A folder whose names and link targets take more bytes together is not listed.
const MAX_LISTED_LEN: usize = 16 * 1024 * 1024;

impl Guest {
    /// What is at a path in the guest.
    ///
    /// # Errors
    /// [`LinkError`]; [`LinkError::Refused`] with [`ErrorKind::NotFound`] when nothing is.
    pub async fn stat(&self, path: &[u8], follow: bool) -> Result<FileInfo, LinkError> {
        let request = StatRequest { path: ByteBuf::from(path), follow };
        match self.link_to("look at files in place")?.ask(&Request::Stat(request)).await? {
            Reply::Stat(info) => Ok(info),
            other => Err(unexpected(&other)),
        }
    }

    /// The entries of a folder in the guest, by name.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn list(&self, path: &[u8]) -> Result<Vec<FolderEntry>, LinkError> {
        let request = Request::List(ListRequest { path: ByteBuf::from(path) });
        let mut channel = self.link_to("list folders")?.channel(&request, 0).await?;
        let (mut entries, mut len) = (Vec::new(), 0);
        loop {
            match channel.reply().await? {
                Reply::List(list) => {
                    if list.more && list.entries.is_empty() {
                        return Err(broken("a piece of a folder with nothing in it"));
                    }
                    for entry in &list.entries {
                        if !is_name(&entry.name) {
                            return Err(broken("an entry of a folder whose name is none"));
                        }
                        let target = entry.info.as_ref().and_then(|info| info.target.as_ref());
                        len += entry.name.len() + target.map_or(0, |target| target.len());
                    }
                    entries.extend(list.entries);
                    if entries.len() > MAX_LISTED || len > MAX_LISTED_LEN {
                        return Err(broken("a folder without end"));
                    }
                    if !list.more {
                        entries.sort_by(|a, b| a.name.cmp(&b.name));
                        return Ok(entries);
                    }
                }
                Reply::Error(error) => return Err(LinkError::Refused(clean(error))),
                other => return Err(unexpected(&other)),
            }
        }
    }

    /// Makes a folder in the guest; with `parents` those above it too, and it may be there already.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn make_folder(
        &self,
        path: &[u8],
        mode: u32,
        parents: bool,
    ) -> Result<(), LinkError> {
        let request = MakeFolderRequest { path: ByteBuf::from(path), mode, parents };
        self.done(&Request::MakeFolder(request), "make folders").await
    }

    /// Removes a file of the guest, or with `recursive` a folder with all that is in it.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn remove(
        &self,
        path: &[u8],
        recursive: bool,
        missing_ok: bool,
    ) -> Result<(), LinkError> {
        let request = RemoveRequest { path: ByteBuf::from(path), recursive, missing_ok };
        self.done(&Request::Remove(request), "remove files").await
    }
}

/// Can a folder have an entry of this name?
fn is_name(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..")
        && name.len() <= 255
        && !name.iter().any(|&byte| byte == 0 || byte == b'/')
}

fn broken(what: &str) -> LinkError {
    LinkError::Broken { what: what.to_owned() }
}
