//! Bills of materials of images, looked at by validators that others wrote.

use guestline_tests::Guestline;
use serde_json::Value;
use std::path::PathBuf;
use std::process::Stdio;

/// Says what is wrong with a bill in CycloneDX and one in SPDX; nothing when they are right.
const VALIDATE: &str = "
import sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from spdx_tools.spdx.parser.parse_anything import parse_file
from spdx_tools.spdx.validation.document_validator import validate_full_spdx_document
wrong = JsonStrictValidator(SchemaVersion.V1_6).validate_str(open(sys.argv[1]).read())
if wrong is not None:
    print(wrong)
for message in validate_full_spdx_document(parse_file(sys.argv[2])):
    print(message.validation_message)
";

fn python() -> PathBuf {
    let python = std::env::var_os("GUESTLINE_SBOM_PYTHON").map(PathBuf::from);
    python.filter(|path| path.is_file()).unwrap_or_else(|| {
        panic!(
            "GUESTLINE_SBOM_PYTHON names no file: `setup/sbom-validators.sh` installs what checks bills of materials \
             and prints its path"
        )
    })
}

#[test]
fn the_bill_of_an_image_is_valid_whole_and_always_the_same() {
    let guestline = Guestline::new();
    assert_eq!(guestline.run(&["check", "true"]).status, 0);
    let write = |format: &str, file: &str| {
        let ran = guestline.run(&["image", "sbom", "tiny", "--format", format, "-o", file]);
        assert_eq!(ran.status, 0, "{}", ran.stderr);
        let text = std::fs::read_to_string(guestline.home().join(file)).unwrap();
        let again = guestline.run(&["image", "sbom", "tiny", "--format", format]);
        assert_eq!(again.stdout(), text);
        text
    };
    let (cyclonedx, spdx) = (write("cyclonedx", "a.cdx.json"), write("spdx", "a.spdx.json"));
    let validate = |first: &str, second: &str| {
        let args = ["-c", VALIDATE, first, second];
        let ran = guestline.run_other(&python().to_string_lossy(), &args, Stdio::null());
        assert_eq!(ran.status, 0, "{}", ran.stderr);
        ran.stdout()
    };
    assert_eq!(validate("a.cdx.json", "a.spdx.json"), "");
    // The validators do look.
    let home = guestline.home();
    std::fs::write(home.join("b.cdx.json"), cyclonedx.replace("\"SHA-256\"", "\"SHA-0\"")).unwrap();
    assert!(validate("b.cdx.json", "a.spdx.json").contains("SHA-0"));
    let wrong = spdx.replace("pkg:deb/", "").replace("https://guestline.invalid", "nowhere#");
    std::fs::write(home.join("b.spdx.json"), wrong).unwrap();
    assert!(!validate("a.cdx.json", "b.spdx.json").is_empty());

    let shown = guestline.run(&["image", "show", "tiny", "--json"]);
    let shown: Value = serde_json::from_str(&shown.stdout()).unwrap();
    let bill: Value = serde_json::from_str(&cyclonedx).unwrap();
    for package in shown["made"]["packages"].as_array().unwrap() {
        let components = bill["components"].as_array().unwrap();
        let found = components.iter().find(|component| component["name"] == package["name"]);
        let found = found.unwrap_or_else(|| panic!("no {package}"));
        assert_eq!(found["version"], package["version"]);
        assert_eq!(found["hashes"][0]["content"], package["sha256"]);
        assert!(spdx.contains(package["sha256"].as_str().unwrap()));
        assert!(found["purl"].as_str().unwrap().starts_with("pkg:deb/debian/"));
    }
    assert_eq!(bill["metadata"]["component"]["name"], "tiny");
    let ran = guestline.run(&["image", "sbom", "debian-sid"]);
    assert_eq!(ran.status, 2);
    assert!(
        ran.stderr.contains("hint: make it: guestline image build debian-sid"),
        "{}",
        ran.stderr
    );
}
