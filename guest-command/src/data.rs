//! Bytes within JSON: text as it is, anything else as `{"base64": "…"}`.

use crate::base64;
use serde::de::{Error, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;

/// Any bytes.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Data(pub Vec<u8>);

impl From<&str> for Data {
    fn from(text: &str) -> Self {
        Self(text.as_bytes().to_vec())
    }
}

impl fmt::Debug for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b\"{}\"", self.0.escape_ascii())
    }
}

impl Serialize for Data {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(&self.0) {
            Ok(text) => serializer.serialize_str(text),
            Err(_) => {
                let mut map = serializer.serialize_map(Some(1))?;
                map.serialize_entry("base64", &base64::encode(&self.0))?;
                map.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for Data {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(DataVisitor)
    }
}

struct DataVisitor;

impl<'de> Visitor<'de> for DataVisitor {
    type Value = Data;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, or {\"base64\": string}")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Data, E> {
        Ok(Data::from(text))
    }

    fn visit_string<E: Error>(self, text: String) -> Result<Data, E> {
        Ok(Data(text.into_bytes()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Data, A::Error> {
        let entry: Option<(String, String)> = map.next_entry()?;
        let bytes = match entry {
            Some((name, text)) if name == "base64" => {
                base64::decode(&text).ok_or_else(|| A::Error::custom("this is no base64"))?
            }
            _ => return Err(A::Error::custom("bytes without `base64`")),
        };
        match map.next_key::<String>()? {
            None => Ok(Data(bytes)),
            Some(name) => Err(A::Error::custom(format!("`{name}` beside `base64`"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_stays_text_and_other_bytes_become_base64() {
        for (bytes, json) in
            [(&b"a\n\"b"[..], r#""a\n\"b""#), (b"\xff\x00", r#"{"base64":"/wA="}"#)]
        {
            let data = Data(bytes.to_vec());
            assert_eq!(serde_json::to_string(&data).unwrap(), json);
            assert_eq!(serde_json::from_str::<Data>(json).unwrap(), data);
        }
        for wrong in
            ["1", "null", "{}", r#"{"base64":"x"}"#, r#"{"base64":"","x":""}"#, r#"{"a":"b"}"#]
        {
            assert!(serde_json::from_str::<Data>(wrong).is_err(), "{wrong}");
        }
    }
}
