//! A matrix as TOML (or JSON) has it.
//!
//! What is wrong with a key or a value is raised where it is read, so that the error has its place in the file.

use super::super::axis::Axis;
use super::{Matrix, MatrixError, Point, Strategy, value};
use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

/// A key of a matrix.
enum Key {
    Strategy,
    Include,
    Exclude,
    Requires,
    Axis(Axis),
}

impl Key {
    fn parse(text: &str) -> Result<Self, MatrixError> {
        Ok(match text {
            "strategy" => Self::Strategy,
            "include" => Self::Include,
            "exclude" => Self::Exclude,
            "requires" => Self::Requires,
            name => Self::Axis(Axis::introduced(name)?),
        })
    }
}

fn strategy(word: &str) -> Result<Strategy, MatrixError> {
    match word {
        "all" => Ok(Strategy::All),
        "pairwise" => Ok(Strategy::Pairwise),
        other => Err(MatrixError::Strategy { strategy: super::beginning(other) }),
    }
}

/// The key of a requirement: an axis and its value.
fn requires_key(key: &str) -> Result<(Axis, Arc<str>), MatrixError> {
    let wrong = || MatrixError::RequiresKey { key: super::beginning(key) };
    let (name, text) = key.split_once('=').ok_or_else(wrong)?;
    let axis = Axis::parse(name.trim_end())?;
    let value = value(&axis, text.trim_start())?;
    Ok((axis, value))
}

impl<'de> Deserialize<'de> for Matrix {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(MatrixVisitor)
    }
}

struct MatrixVisitor;

impl<'de> Visitor<'de> for MatrixVisitor {
    type Value = Matrix;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a table of axes, each with a list of its values")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Matrix, A::Error> {
        let mut matrix = Matrix::default();
        // TOML has no key twice, but JSON may.
        let mut seen = [false; 4];
        let mut once = |index: usize, key: &str| match std::mem::replace(&mut seen[index], true) {
            true => Err(A::Error::custom(MatrixError::DuplicateKey { key: key.to_owned() })),
            false => Ok(()),
        };
        while let Some(key) = map.next_key_seed(Text("an axis", Key::parse))? {
            match key {
                Key::Strategy => {
                    once(0, "strategy")?;
                    let seed = Text("\"all\" or \"pairwise\"", strategy);
                    matrix.strategy = map.next_value_seed(seed)?;
                }
                Key::Include => {
                    once(1, "include")?;
                    matrix.include = map.next_value_seed(List(PointSeed))?;
                }
                Key::Exclude => {
                    once(2, "exclude")?;
                    matrix.exclude = map.next_value_seed(List(PointSeed))?;
                }
                Key::Requires => {
                    once(3, "requires")?;
                    matrix.requires = map.next_value_seed(RequiresSeed)?;
                }
                Key::Axis(axis) => {
                    let values = map.next_value_seed(List(ValueSeed(&axis)))?;
                    matrix.add(axis, values).map_err(A::Error::custom)?;
                }
            }
        }
        matrix.checked().map_err(A::Error::custom)
    }
}

/// What is expected, and how it is read.
#[derive(Clone, Copy)]
struct Text<F>(&'static str, F);

impl<'de, T, F: Fn(&str) -> Result<T, MatrixError>> DeserializeSeed<'de> for Text<F> {
    type Value = T;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<T, D::Error> {
        deserializer.deserialize_any(TextVisitor(self, PhantomData))
    }
}

struct TextVisitor<T, F>(Text<F>, PhantomData<T>);

impl<T, F: Fn(&str) -> Result<T, MatrixError>> Visitor<'_> for TextVisitor<T, F> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.0)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        self.0.1(text).map_err(E::custom)
    }
}

/// A value of this axis.
#[derive(Clone, Copy)]
struct ValueSeed<'a>(&'a Axis);

impl<'de> DeserializeSeed<'de> for ValueSeed<'_> {
    type Value = Arc<str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Arc<str>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Visitor<'_> for ValueSeed<'_> {
    type Value = Arc<str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a string, an integer or a boolean as a value of the axis `{}`", self.0)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Arc<str>, E> {
        value(self.0, text).map_err(E::custom)
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Arc<str>, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Arc<str>, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_bool<E: Error>(self, is: bool) -> Result<Arc<str>, E> {
        self.visit_str(if is { "true" } else { "false" })
    }
}

/// A list of what the seed takes.
struct List<S>(S);

impl<'de, S: DeserializeSeed<'de> + Copy + Expected> DeserializeSeed<'de> for List<S> {
    type Value = Vec<S::Value>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, S: DeserializeSeed<'de> + Copy + Expected> Visitor<'de> for List<S> {
    type Value = Vec<S::Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.list(f)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut list = Vec::new();
        while let Some(next) = seq.next_element_seed(self.0)? {
            list.push(next);
        }
        Ok(list)
    }
}

/// Says what a list is expected to be of.
trait Expected {
    fn list(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result;
}

impl Expected for ValueSeed<'_> {
    fn list(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of values of the axis `{}`, in brackets", self.0)
    }
}

impl Expected for PointSeed {
    fn list(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of points [{ AXIS = VALUE, … }, …]")
    }
}

/// A point.
#[derive(Clone, Copy)]
struct PointSeed;

impl<'de> DeserializeSeed<'de> for PointSeed {
    type Value = Point;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Point, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for PointSeed {
    type Value = Point;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a point { AXIS = VALUE, … }")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Point, A::Error> {
        let mut point = Point::new();
        let axis = |name: &str| Axis::parse(name).map_err(MatrixError::from);
        while let Some(axis) = map.next_key_seed(Text("an axis", axis))? {
            let value = map.next_value_seed(ValueSeed(&axis))?;
            if point.insert(axis.clone(), value).is_some() {
                let key = axis.to_string();
                return Err(A::Error::custom(MatrixError::DuplicateKey { key }));
            }
        }
        Ok(point)
    }
}

/// Requirements by axis and value.
struct RequiresSeed;

type Requires = std::collections::BTreeMap<(Axis, Arc<str>), Vec<String>>;

impl<'de> DeserializeSeed<'de> for RequiresSeed {
    type Value = Requires;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Requires, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for RequiresSeed {
    type Value = Requires;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a table { \"AXIS=VALUE\" = [\"REQUIREMENT\", …], … }")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Requires, A::Error> {
        let mut requires = Requires::new();
        while let Some(key) = map.next_key_seed(Text("AXIS=VALUE", requires_key))? {
            let name = format!("{}={}", key.0, key.1);
            if requires.insert(key, map.next_value()?).is_some() {
                return Err(A::Error::custom(MatrixError::DuplicateKey { key: name }));
            }
        }
        Ok(requires)
    }
}
