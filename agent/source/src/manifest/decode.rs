//! A generic value as a deserializer as lenient as Go's: `null` is the zero value of the expected type, such
//! as an empty text, 0, `false` or an empty object. Errors about other types use the words of a manifest.

use crate::convert::field::kind_of;
use serde::de::{
    self, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, SeqAccess, Visitor, value::Error,
};
use serde_json::{Number, Value};

/// Deserializer of a generic value.
#[derive(Clone, Copy)]
pub(super) struct Lenient<'v>(pub(super) &'v Value);

fn not(what: &str, found: &Value) -> Error {
    let hint = match found {
        Value::Bool(_) | Value::Number(_) if what == "a string" => {
            ": quote it (y, n, yes, no, on and off are booleans too)"
        }
        _ => "",
    };
    let found = match found {
        Value::Bool(value) => format!("the boolean {value}"),
        Value::Number(number) => format!("the number {number}"),
        other => kind_of(other).to_owned(),
    };
    de::Error::custom(format!("must be {what}, not {found}{hint}"))
}

impl<'v> Lenient<'v> {
    fn text<V: Visitor<'v>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::String(text) => visitor.visit_str(text),
            Value::Null => visitor.visit_str(""),
            other => Err(not("a string", other)),
        }
    }

    fn whole(self, least: i64, most: i64) -> Result<i64, Error> {
        let number: &Number = match self.0 {
            Value::Number(number) => number,
            Value::Null => return Ok(0),
            other => return Err(not("a whole number", other)),
        };
        match number.as_i64() {
            Some(value) if (least..=most).contains(&value) => Ok(value),
            None if number.is_f64() => Err(not("a whole number", self.0)),
            _ => Err(de::Error::custom(format!("{number} must be {least} to {most}"))),
        }
    }
}

macro_rules! whole {
    ($($method:ident $visit:ident $least:expr, $most:expr;)*) => {
        $(fn $method<V: Visitor<'v>>(self, visitor: V) -> Result<V::Value, Error> {
            visitor.visit_i64(self.whole($least, $most)?)
        })*
    };
}

impl<'v> Deserializer<'v> for Lenient<'v> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'v>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Number(number) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
                (Some(value), _, _) => visitor.visit_i64(value),
                (_, Some(value), _) => visitor.visit_u64(value),
                (_, _, Some(value)) => visitor.visit_f64(value),
                _ => Err(not("a number", self.0)),
            },
            Value::String(text) => visitor.visit_str(text),
            Value::Array(_) => self.deserialize_seq(visitor),
            Value::Object(_) => self.deserialize_map(visitor),
        }
    }

    fn deserialize_bool<V: Visitor<'v>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Null => visitor.visit_bool(false),
            other => Err(not("true or false", other)),
        }
    }

    whole! {
        deserialize_i8 visit_i64 i64::from(i8::MIN), i64::from(i8::MAX);
        deserialize_i16 visit_i64 i64::from(i16::MIN), i64::from(i16::MAX);
        deserialize_i32 visit_i64 i64::from(i32::MIN), i64::from(i32::MAX);
        deserialize_i64 visit_i64 i64::MIN, i64::MAX;
        deserialize_u8 visit_i64 0, i64::from(u8::MAX);
        deserialize_u16 visit_i64 0, i64::from(u16::MAX);
        deserialize_u32 visit_i64 0, i64::from(u32::MAX);
        deserialize_u64 visit_i64 0, i64::MAX;
    }

    fn deserialize_f32<V: Visitor<'v>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_f64(visitor)
    }

    fn deserialize_f64<V: Visitor<'v>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Null => visitor.visit_f64(0.0),
            Value::Number(number) => visitor.visit_f64(number.as_f64().unwrap_or(0.0)),
            other => Err(not("a number", other)),
        }
    }

    fn deserialize_char<V: Visitor<'v>>(self, visitor: V) -> Result<V::Value, Error> {
        self.text(visitor)
    }

    fn deserialize_str<V: Visitor<'v>>(self, visitor: V) -> Result<V::Value, Error> {
        self.text(visitor)
    }

    fn deserialize_string<V: Visitor<'v>>(self, visitor: V) -> Result<V::Value, Error> {
        self.text(visitor)
    }

    fn deserialize_bytes<V: Visitor<'v>>(self, visitor: V) -> Result<V::Value, Error> {
        self.text(visitor)
    }

    fn deserialize_byte_buf<V: Visitor<'v>>(self, visitor: V) -> Result<V::Value, Error> {
        self.text(visitor)
    }

    fn deserialize_option<V: Visitor<'v>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_unit<V: Visitor<'v>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_any(visitor)
    }

    fn deserialize_unit_struct<V: Visitor<'v>>(self, _: &'static str, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_any(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'v>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        match (name, self.0) {
            // The type accepts text and numbers, so its own error would not name the expected type.
            ("Quantity", Value::Null) => {
                visitor.visit_newtype_struct(IntoDeserializer::<Error>::into_deserializer(0_i64))
            }
            ("Quantity", Value::String(_) | Value::Number(_)) => visitor.visit_newtype_struct(self),
            ("Quantity", other) => Err(not("a quantity", other)),
            _ => visitor.visit_newtype_struct(self),
        }
    }

    fn deserialize_seq<V: Visitor<'v>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Array(list) => visitor.visit_seq(List(list.iter())),
            Value::Null => visitor.visit_seq(List([].iter())),
            other => Err(not("a list", other)),
        }
    }

    fn deserialize_tuple<V: Visitor<'v>>(self, _: usize, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'v>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_map<V: Visitor<'v>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Object(map) => visitor.visit_map(Fields { fields: Some(map.iter()), value: None }),
            Value::Null => visitor.visit_map(Fields { fields: None, value: None }),
            other => Err(not("an object", other)),
        }
    }

    fn deserialize_struct<V: Visitor<'v>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_map(visitor)
    }

    fn deserialize_enum<V: Visitor<'v>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.0 {
            Value::String(text) => visitor.visit_enum(text.as_str().into_deserializer()),
            other => Err(not("a string", other)),
        }
    }

    fn deserialize_identifier<V: Visitor<'v>>(self, visitor: V) -> Result<V::Value, Error> {
        self.text(visitor)
    }

    fn deserialize_ignored_any<V: Visitor<'v>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_unit()
    }
}

struct List<'v>(std::slice::Iter<'v, Value>);

impl<'v> SeqAccess<'v> for List<'v> {
    type Error = Error;
    fn next_element_seed<T: DeserializeSeed<'v>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        self.0.next().map(|value| seed.deserialize(Lenient(value))).transpose()
    }
}

struct Fields<'v> {
    fields: Option<serde_json::map::Iter<'v>>,
    value: Option<&'v Value>,
}

impl<'v> MapAccess<'v> for Fields<'v> {
    type Error = Error;
    fn next_key_seed<K: DeserializeSeed<'v>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        let Some((key, value)) = self.fields.as_mut().and_then(Iterator::next) else { return Ok(None) };
        self.value = Some(value);
        seed.deserialize(key.as_str().into_deserializer()).map(Some)
    }
    fn next_value_seed<T: DeserializeSeed<'v>>(&mut self, seed: T) -> Result<T::Value, Error> {
        const NOTHING: Value = Value::Null;
        seed.deserialize(Lenient(self.value.take().unwrap_or(&NOTHING)))
    }
}
