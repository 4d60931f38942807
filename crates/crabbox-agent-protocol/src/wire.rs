//! Encodes the fields of a message as bytes.
//!
//! Numbers are big-endian; variable-length values have a four-byte length first. A reader must never read
//! beyond its frame, nor reserve memory for data that did not arrive.

/// Why bytes are not a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Malformed {
    /// They end within a field.
    Short,
    /// There are more bytes than the message has.
    Long,
    /// A text is not UTF-8.
    Text,
    /// A value is invalid for its type.
    Value,
    /// No message has this tag.
    Unknown(u8),
}

impl std::fmt::Display for Malformed {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Short => out.write_str("a message ends within a field"),
            Self::Long => out.write_str("a message is longer than its fields"),
            Self::Text => out.write_str("a text of a message is not UTF-8"),
            Self::Value => out.write_str("a field of a message has no value of its type"),
            Self::Unknown(tag) => write!(out, "there is no message {tag}"),
        }
    }
}

impl std::error::Error for Malformed {}

/// The rest of a message that was not read yet.
#[derive(Debug)]
pub struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    /// Reads all of `payload`.
    pub fn of(payload: &'a [u8]) -> Self {
        Self(payload)
    }

    fn bytes(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Malformed::Short)?;
        self.0 = rest;
        Ok(taken)
    }

    fn counted(&mut self) -> Result<&'a [u8], Malformed> {
        let count = usize::try_from(u32::take(self)?).map_err(|_| Malformed::Value)?;
        self.bytes(count)
    }

    /// Whether all of it was read.
    pub fn end(&self) -> Result<(), Malformed> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(Malformed::Long)
        }
    }
}

/// A field of a message.
pub trait Wire: Sized {
    /// Appends it.
    fn put(&self, out: &mut Vec<u8>);
    /// Reads it.
    fn take(fields: &mut Fields<'_>) -> Result<Self, Malformed>;
}

macro_rules! number {
    ($($type:ty),*) => {$(
        impl Wire for $type {
            fn put(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_be_bytes());
            }

            fn take(fields: &mut Fields<'_>) -> Result<Self, Malformed> {
                let bytes = fields.bytes(size_of::<$type>())?;
                bytes.try_into().map(<$type>::from_be_bytes).map_err(|_| Malformed::Short)
            }
        }
    )*};
}

number!(u32, u64, i64);

impl Wire for bool {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }

    fn take(fields: &mut Fields<'_>) -> Result<Self, Malformed> {
        match fields.bytes(1)? {
            [0] => Ok(false),
            [1] => Ok(true),
            _ => Err(Malformed::Value),
        }
    }
}

/// An oversized value is not truncated here: the frame is refused.
fn put_counted(bytes: &[u8], out: &mut Vec<u8>) {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX).put(out);
    out.extend_from_slice(bytes);
}

impl Wire for Vec<u8> {
    fn put(&self, out: &mut Vec<u8>) {
        put_counted(self, out);
    }

    fn take(fields: &mut Fields<'_>) -> Result<Self, Malformed> {
        fields.counted().map(<[u8]>::to_vec)
    }
}

impl Wire for String {
    fn put(&self, out: &mut Vec<u8>) {
        put_counted(self.as_bytes(), out);
    }

    fn take(fields: &mut Fields<'_>) -> Result<Self, Malformed> {
        let bytes = fields.counted()?;
        std::str::from_utf8(bytes)
            .map(str::to_owned)
            .map_err(|_| Malformed::Text)
    }
}

impl<T: Wire> Wire for Option<T> {
    fn put(&self, out: &mut Vec<u8>) {
        self.is_some().put(out);
        if let Some(value) = self {
            value.put(out);
        }
    }

    fn take(fields: &mut Fields<'_>) -> Result<Self, Malformed> {
        bool::take(fields)?.then(|| T::take(fields)).transpose()
    }
}

impl Wire for Vec<String> {
    fn put(&self, out: &mut Vec<u8>) {
        u32::try_from(self.len()).unwrap_or(u32::MAX).put(out);
        for value in self {
            value.put(out);
        }
    }

    fn take(fields: &mut Fields<'_>) -> Result<Self, Malformed> {
        let count = u32::take(fields)?;
        // No capacity is reserved, because the count is not trusted.
        let mut all = Self::new();
        for _ in 0..count {
            all.push(String::take(fields)?);
        }
        Ok(all)
    }
}

impl Wire for Vec<(String, String)> {
    fn put(&self, out: &mut Vec<u8>) {
        u32::try_from(self.len()).unwrap_or(u32::MAX).put(out);
        for (name, value) in self {
            name.put(out);
            value.put(out);
        }
    }

    fn take(fields: &mut Fields<'_>) -> Result<Self, Malformed> {
        let count = u32::take(fields)?;
        let mut all = Self::new();
        for _ in 0..count {
            all.push((String::take(fields)?, String::take(fields)?));
        }
        Ok(all)
    }
}

/// A struct whose fields are written in their order.
macro_rules! record {
    (
        $(#[$meta:meta])*
        pub struct $name:ident {
            $($(#[$field_meta:meta])* pub $field:ident: $type:ty,)*
        }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct $name {
            $($(#[$field_meta])* pub $field: $type,)*
        }

        impl $crate::wire::Wire for $name {
            fn put(&self, out: &mut Vec<u8>) {
                $($crate::wire::Wire::put(&self.$field, out);)*
            }

            fn take(fields: &mut $crate::wire::Fields<'_>) -> Result<Self, $crate::wire::Malformed> {
                Ok(Self {
                    $($field: $crate::wire::Wire::take(fields)?,)*
                })
            }
        }
    };
}

/// An enum whose variants are the messages of one side, each with its tag.
macro_rules! messages {
    (
        $(#[$meta:meta])*
        pub enum $name:ident {
            $($(#[$variant_meta:meta])* $tag:literal => $variant:ident {
                $($(#[$field_meta:meta])* $field:ident: $type:ty,)*
            },)*
        }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum $name {
            $($(#[$variant_meta])* $variant {
                $($(#[$field_meta])* $field: $type,)*
            },)*
        }

        impl $name {
            /// The tag of its frame.
            pub fn tag(&self) -> u8 {
                match self {
                    $(Self::$variant { .. } => $tag,)*
                }
            }

            /// Appends its fields.
            pub fn put(&self, out: &mut Vec<u8>) {
                match self {
                    $(Self::$variant { $($field,)* } => {
                        $($crate::wire::Wire::put($field, out);)*
                        // A message without fields appends nothing.
                        let _: &mut Vec<u8> = out;
                    })*
                }
            }

            /// Reads the one with this tag.
            pub fn take(tag: u8, payload: &[u8]) -> Result<Self, $crate::wire::Malformed> {
                let fields = &mut $crate::wire::Fields::of(payload);
                let message = match tag {
                    $($tag => Self::$variant {
                        $($field: $crate::wire::Wire::take(fields)?,)*
                    },)*
                    tag => return Err($crate::wire::Malformed::Unknown(tag)),
                };
                fields.end()?;
                Ok(message)
            }
        }
    };
}

pub(crate) use {messages, record};
