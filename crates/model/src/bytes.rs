//! Byte strings that survive JSON: argv, environment and paths need not be UTF-8.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use serde::de::{self, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Bytes that are usually text. In JSON: a string when they are UTF-8, else `{"hex":"…"}`;
/// in binary formats: a byte string.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ByteString(pub Vec<u8>);

impl ByteString {
    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The bytes as an OS string (Unix: the same bytes).
    #[must_use]
    pub fn as_os_str(&self) -> &OsStr {
        OsStr::from_bytes(&self.0)
    }

    /// The bytes as text for messages; bytes that are not UTF-8 are replaced.
    #[must_use]
    pub fn to_string_lossy(&self) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(&self.0)
    }
}

impl fmt::Debug for ByteString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b\"{}\"", self.0.escape_ascii())
    }
}

impl From<&str> for ByteString {
    fn from(s: &str) -> Self {
        Self(s.as_bytes().to_vec())
    }
}

impl From<String> for ByteString {
    fn from(s: String) -> Self {
        Self(s.into_bytes())
    }
}

impl From<OsString> for ByteString {
    fn from(s: OsString) -> Self {
        Self(s.into_vec())
    }
}

impl From<Vec<u8>> for ByteString {
    fn from(v: Vec<u8>) -> Self {
        Self(v)
    }
}

impl Serialize for ByteString {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        if !s.is_human_readable() {
            return s.serialize_bytes(&self.0);
        }
        if let Ok(text) = std::str::from_utf8(&self.0) {
            return s.serialize_str(text);
        }
        let mut map = s.serialize_map(Some(1))?;
        map.serialize_entry("hex", &hex::encode(&self.0))?;
        map.end()
    }
}

impl<'de> Deserialize<'de> for ByteString {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = ByteString;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, a byte string or {\"hex\": …}")
            }
            fn visit_str<E: de::Error>(self, v: &str) -> Result<ByteString, E> {
                Ok(v.into())
            }
            fn visit_bytes<E: de::Error>(self, v: &[u8]) -> Result<ByteString, E> {
                Ok(ByteString(v.to_vec()))
            }
            fn visit_byte_buf<E: de::Error>(self, v: Vec<u8>) -> Result<ByteString, E> {
                Ok(ByteString(v))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut m: A) -> Result<ByteString, A::Error> {
                let Some((key, value)) = m.next_entry::<String, String>()? else {
                    return Err(de::Error::missing_field("hex"));
                };
                if key != "hex" {
                    return Err(de::Error::unknown_field(&key, &["hex"]));
                }
                hex::decode(value).map(ByteString).map_err(|_| de::Error::custom("not hexadecimal"))
            }
        }
        // As a buffer: of what is borrowed, a CBOR reader takes no more than 4 KiB.
        if d.is_human_readable() { d.deserialize_any(V) } else { d.deserialize_byte_buf(V) }
    }
}

#[cfg(feature = "schema")]
impl utoipa::PartialSchema for ByteString {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        use utoipa::openapi::schema::{ObjectBuilder, OneOfBuilder, Type};
        OneOfBuilder::new()
            .item(ObjectBuilder::new().schema_type(Type::String))
            .item(ObjectBuilder::new().property("hex", ObjectBuilder::new().schema_type(Type::String)))
            .description(Some("A string, or {\"hex\": …} when the bytes are not UTF-8"))
            .into()
    }
}

#[cfg(feature = "schema")]
impl utoipa::ToSchema for ByteString {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_survive_json_and_cbor(bytes: Vec<u8>) {
            let given = ByteString(bytes);
            let json = serde_json::to_string(&given).unwrap();
            prop_assert_eq!(&serde_json::from_str::<ByteString>(&json).unwrap(), &given);
            let mut cbor = Vec::new();
            ciborium::into_writer(&given, &mut cbor).unwrap();
            prop_assert_eq!(ciborium::from_reader::<ByteString, _>(&cbor[..]).unwrap(), given);
        }
    }

    #[test]
    fn text_is_a_plain_json_string_and_other_bytes_are_hex() {
        assert_eq!(serde_json::to_string(&ByteString::from("a b")).unwrap(), "\"a b\"");
        assert_eq!(serde_json::to_string(&ByteString(vec![0xff, 0])).unwrap(), r#"{"hex":"ff00"}"#);
        assert!(serde_json::from_str::<ByteString>(r#"{"hex":"fé"}"#).is_err());
    }
}
