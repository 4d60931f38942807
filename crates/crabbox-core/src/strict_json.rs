//! Unambiguous JSON: no duplicate name in an object, nothing after the value, limited depth and size.
//!
//! Signed or validated documents are parsed with it. It must never choose between two values of one name,
//! because JSON parsers differ in which one they use: one program would then show what another has not
//! verified.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// The limits of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The deepest nesting; a plain value has depth 1.
    pub depth: usize,
    /// The maximum number of values, including nested ones, objects and arrays.
    pub values: usize,
}

/// Why a text was not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    Duplicate,
    Depth,
    Values,
}

/// Why a text is not unambiguous JSON.
#[derive(Debug, thiserror::Error)]
pub enum StrictJsonError {
    /// An object has a duplicate name.
    #[error("duplicate key")]
    Duplicate,
    /// It is nested too deeply.
    #[error("it is nested deeper than {0} levels")]
    Depth(usize),
    /// It has too many values.
    #[error("it has more than {0} values")]
    Values(usize),
    /// It is not valid JSON.
    #[error("{0}")]
    Syntax(#[from] serde_json::Error),
}

/// Parses `text`, which must contain one value and nothing else.
pub fn parse(text: &[u8], limits: Limits) -> Result<Value, StrictJsonError> {
    let budget = Budget {
        values: Cell::new(limits.values),
        refusal: Cell::new(None),
    };
    let mut reader = serde_json::Deserializer::from_slice(text);
    let read = Node {
        budget: &budget,
        depth: limits.depth,
    }
    .deserialize(&mut reader)
    .and_then(|value| reader.end().map(|()| value));
    read.map_err(|error| match budget.refusal.get() {
        Some(Refusal::Duplicate) => StrictJsonError::Duplicate,
        Some(Refusal::Depth) => StrictJsonError::Depth(limits.depth),
        Some(Refusal::Values) => StrictJsonError::Values(limits.values),
        None => StrictJsonError::Syntax(error),
    })
}

/// The remaining limits, and why parsing ended.
struct Budget {
    values: Cell<usize>,
    refusal: Cell<Option<Refusal>>,
}

/// Parses one value, with `depth` levels left for it.
#[derive(Clone, Copy)]
struct Node<'a> {
    budget: &'a Budget,
    depth: usize,
}

impl Node<'_> {
    fn refuse<E: serde::de::Error>(self, why: Refusal) -> E {
        self.budget.refusal.set(Some(why));
        E::custom("refused")
    }

    fn inner(self) -> Self {
        Self {
            budget: self.budget,
            depth: self.depth - 1,
        }
    }
}

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        if self.depth == 0 {
            return Err(self.refuse(Refusal::Depth));
        }
        match self.budget.values.get().checked_sub(1) {
            Some(left) => self.budget.values.set(left),
            None => return Err(self.refuse(Refusal::Values)),
        }
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        let number = Number::from_f64(value).ok_or_else(|| E::custom("a number that is none"))?;
        Ok(Value::Number(number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut array = Vec::new();
        while let Some(item) = items.next_element_seed(self.inner())? {
            array.push(item);
        }
        Ok(Value::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(name) = entries.next_key::<Name>()? {
            if object.contains_key(&name.0) {
                return Err(self.refuse(Refusal::Duplicate));
            }
            let value = entries.next_value_seed(self.inner())?;
            object.insert(name.0, value);
        }
        Ok(Value::Object(object))
    }
}

/// A name in an object.
struct Name(String);

impl<'de> serde::Deserialize<'de> for Name {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from).map(Self).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { depth: 4, values: 8 };

    fn told(text: &str) -> String {
        parse(text.as_bytes(), LIMITS).unwrap_err().to_string()
    }

    #[test]
    fn it_is_read_as_any_reader_reads_it() {
        for text in [
            r#"{"b":[1,-2,1.5,true,null],"a":"\u00e9\n"}"#,
            "7",
            r#""x""#,
            " [ ] \n",
            "18446744073709551615",
        ] {
            let plain: Value = serde_json::from_str(text).unwrap();
            assert_eq!(parse(text.as_bytes(), LIMITS).unwrap(), plain, "{text}");
        }
    }

    #[test]
    fn a_name_that_stands_twice_is_refused_however_it_is_spelled() {
        for text in [
            r#"{"a":1,"a":1}"#,
            r#"{"a":1,"\u0061":2}"#,
            r#"[{"x":{"a":1,"b":2,"a":3}}]"#,
        ] {
            assert_eq!(told(text), "duplicate key", "{text}");
        }
        assert!(parse(br#"[{"a":1},{"a":2}]"#, LIMITS).is_ok());
    }

    #[test]
    fn depth_and_number_are_bounded_and_nothing_follows() {
        assert!(parse(b"[[[1]]]", LIMITS).is_ok());
        assert_eq!(told("[[[[1]]]]"), "it is nested deeper than 4 levels");
        assert!(parse(b"[1,2,3,4,5,6,7]", LIMITS).is_ok());
        assert_eq!(told("[1,2,3,4,5,6,7,8]"), "it has more than 8 values");
        for text in ["", "{", "1 2", "{} x", "nul", r#""\ud800""#, "1e999", "[1,]"] {
            assert!(
                matches!(parse(text.as_bytes(), LIMITS), Err(StrictJsonError::Syntax(_))),
                "{text}"
            );
        }
        assert!(parse(b"\"\xff\"", LIMITS).is_err());
    }
}
