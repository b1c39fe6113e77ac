//! Structs that the host writes and kernels read, and what the host knows of their layout.

/// The fields of a struct that host and device share, in order. A test holds them against the WGSL by reflection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fields {
    /// Bytes of the struct.
    pub size_bytes: usize,
    /// The fields, none of them padding that has no name.
    pub fields: &'static [Field],
}

/// One field of a [`Fields`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its name on both sides.
    pub name: &'static str,
    /// Its type in WGSL.
    pub wgsl: &'static str,
    /// Bytes from the start of the struct.
    pub offset: usize,
}

/// Types that a field may have.
pub(crate) trait FieldType {
    /// The type's name in WGSL.
    const WGSL: &'static str;
}

impl FieldType for u32 {
    const WGSL: &'static str = "u32";
}

impl FieldType for f32 {
    const WGSL: &'static str = "f32";
}

impl FieldType for [u32; 4] {
    const WGSL: &'static str = "vec4<u32>";
}

/// Declares a struct of plain data as the device reads it, and its `FIELDS`.
macro_rules! device_struct {
    ($(#[$about:meta])* $vis:vis struct $name:ident {
        $($(#[$about_field:meta])* $field_vis:vis $field:ident: $type:ty),* $(,)?
    }) => {
        $(#[$about])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
        $vis struct $name {
            $($(#[$about_field])* $field_vis $field: $type),*
        }

        impl $name {
            pub(crate) const FIELDS: $crate::gpu::Fields = $crate::gpu::Fields {
                size_bytes: size_of::<$name>(),
                fields: &[$($crate::gpu::Field {
                    name: stringify!($field),
                    wgsl: <$type as $crate::gpu::FieldType>::WGSL,
                    offset: core::mem::offset_of!($name, $field),
                }),*],
            };
        }
    };
}
pub(crate) use device_struct;
