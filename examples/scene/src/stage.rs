//! The renderer: three pipelines over one target.

use bytemuck::{Pod, Zeroable};
use wginfer::gpu::Tensor;
use wginfer::wgpu::{self, util::DeviceExt};

use crate::guest::{LABELS, ROW};
use crate::overlay::{LETTERS, Letters, Quad};

/// Most rectangles of the overlay.
const MAX_QUADS: usize = 4096;

/// As in `shaders/scene.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct Scene {
    pub size: [f32; 2],
    pub time: f32,
    pub samples: f32,
    pub talk: f32,
    pub listen: f32,
}

/// As in `shaders/bars.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Bars {
    rect: [f32; 4],
    window: [f32; 2],
    row: u32,
    n_labels: u32,
    tokens: [u32; 4],
}

/// What of the scene is computed: samples for each pixel, or a smaller picture that is enlarged.
#[derive(Clone, Copy, Debug)]
pub struct Detail {
    /// Sides of the picture, divided by those of the window.
    pub scale: f32,
    /// For each pixel of the picture.
    pub samples: u32,
}

impl Detail {
    /// The detail that costs `n` times as much as one sample for each pixel.
    pub fn of(n: f32) -> Detail {
        Detail { scale: n.clamp(0.01, 1.0).sqrt(), samples: n.clamp(1.0, 4096.0) as u32 }
    }
}

pub struct Stage {
    device: wgpu::Device,
    queue: wgpu::Queue,
    format: wgpu::TextureFormat,
    size: [u32; 2],
    detail: Detail,
    scene: wgpu::RenderPipeline,
    enlarge: wgpu::RenderPipeline,
    overlay: wgpu::RenderPipeline,
    bars: wgpu::RenderPipeline,
    scene_uniform: wgpu::Buffer,
    scene_group: wgpu::BindGroup,
    picture: wgpu::TextureView,
    picture_group: wgpu::BindGroup,
    linear: wgpu::Sampler,
    window_uniform: wgpu::Buffer,
    overlay_group: wgpu::BindGroup,
    quads: wgpu::Buffer,
    n_quads: u32,
    bars_uniform: wgpu::Buffer,
    /// Once there are probabilities.
    bars_group: Option<wgpu::BindGroup>,
}

/// Copies the picture over the whole target.
const ENLARGE: &str = "
@group(0) @binding(0) var picture: texture_2d<f32>;
@group(0) @binding(1) var linear: sampler;
struct Corner { @builtin(position) position: vec4f, @location(0) uv: vec2f }
@vertex fn corners(@builtin(vertex_index) i: u32) -> Corner {
    let at = vec2f(f32(i & 1u), f32(i >> 1u)) * 2.0;
    return Corner(vec4f(at * 2.0 - 1.0, 0.0, 1.0), vec2f(at.x, 1.0 - at.y));
}
@fragment fn pixel(in: Corner) -> @location(0) vec4f {
    return vec4f(textureSampleLevel(picture, linear, in.uv, 0.0).rgb, 1.0);
}";

impl Stage {
    pub fn new(
        device: wgpu::Device,
        queue: wgpu::Queue,
        format: wgpu::TextureFormat,
        size: [u32; 2],
        letters: &Letters,
    ) -> Stage {
        let quad = wgpu::VertexBufferLayout {
            array_stride: size_of::<Quad>() as u64,
            step_mode: wgpu::VertexStepMode::Instance,
            attributes: &wgpu::vertex_attr_array![0 => Float32x4, 1 => Float32x4, 2 => Float32x4, 3 => Float32],
        };
        let pipeline = |source: &str, buffers: &[Option<wgpu::VertexBufferLayout<'_>>], strip: bool| {
            let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
                label: None,
                source: wgpu::ShaderSource::Wgsl(source.into()),
            });
            device.create_render_pipeline(&wgpu::RenderPipelineDescriptor {
                label: None,
                layout: None,
                vertex: wgpu::VertexState {
                    module: &module,
                    entry_point: Some("corners"),
                    compilation_options: Default::default(),
                    buffers,
                },
                primitive: wgpu::PrimitiveState {
                    topology: match strip {
                        true => wgpu::PrimitiveTopology::TriangleStrip,
                        false => wgpu::PrimitiveTopology::TriangleList,
                    },
                    ..Default::default()
                },
                depth_stencil: None,
                multisample: Default::default(),
                fragment: Some(wgpu::FragmentState {
                    module: &module,
                    entry_point: Some("pixel"),
                    compilation_options: Default::default(),
                    targets: &[Some(wgpu::ColorTargetState {
                        format,
                        blend: Some(wgpu::BlendState::ALPHA_BLENDING),
                        write_mask: wgpu::ColorWrites::ALL,
                    })],
                }),
                multiview_mask: None,
                cache: None,
            })
        };
        let scene = pipeline(include_str!("../shaders/scene.wgsl"), &[], false);
        let enlarge = pipeline(ENLARGE, &[], false);
        let overlay = pipeline(include_str!("../shaders/overlay.wgsl"), &[Some(quad)], true);
        let bars = pipeline(include_str!("../shaders/bars.wgsl"), &[], true);
        let buffer = |label, size, usage| {
            device.create_buffer(&wgpu::BufferDescriptor {
                label: Some(label),
                size,
                usage: usage | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            })
        };
        let scene_uniform = buffer("scene", size_of::<Scene>() as u64, wgpu::BufferUsages::UNIFORM);
        let window_uniform = buffer("window", 8, wgpu::BufferUsages::UNIFORM);
        let bars_uniform = buffer("bars", size_of::<Bars>() as u64, wgpu::BufferUsages::UNIFORM);
        let quads = buffer("quads", (MAX_QUADS * size_of::<Quad>()) as u64, wgpu::BufferUsages::VERTEX);
        let linear = device.create_sampler(&wgpu::SamplerDescriptor {
            mag_filter: wgpu::FilterMode::Linear,
            min_filter: wgpu::FilterMode::Linear,
            ..Default::default()
        });
        let texture = wgpu::TextureDescriptor {
            label: Some("letters"),
            size: wgpu::Extent3d { width: LETTERS, height: LETTERS, depth_or_array_layers: 1 },
            mip_level_count: 1,
            sample_count: 1,
            dimension: wgpu::TextureDimension::D2,
            format: wgpu::TextureFormat::R8Unorm,
            usage: wgpu::TextureUsages::TEXTURE_BINDING,
            view_formats: &[],
        };
        let texture = device.create_texture_with_data(&queue, &texture, Default::default(), &letters.pixels);
        let scene_group = group(&device, &scene, &[scene_uniform.as_entire_binding()]);
        let overlay_group = group(
            &device,
            &overlay,
            &[
                window_uniform.as_entire_binding(),
                wgpu::BindingResource::TextureView(&texture.create_view(&Default::default())),
                wgpu::BindingResource::Sampler(&linear),
            ],
        );
        let (picture, picture_group) = picture(&device, &enlarge, &linear, format, size, 1.0);
        Stage {
            device,
            queue,
            format,
            size,
            detail: Detail::of(1.0),
            scene,
            enlarge,
            overlay,
            bars,
            scene_uniform,
            scene_group,
            picture,
            picture_group,
            linear,
            window_uniform,
            overlay_group,
            quads,
            n_quads: 0,
            bars_uniform,
            bars_group: None,
        }
    }

    /// Sets the size of the window in pixels, and the detail of the scene.
    pub fn set(&mut self, size: [u32; 2], detail: Detail) {
        (self.size, self.detail) = (size, detail);
        (self.picture, self.picture_group) =
            picture(&self.device, &self.enlarge, &self.linear, self.format, size, detail.scale);
    }

    /// The buffer of probabilities that the bars show, with the labels' tokens, from now on.
    pub fn show(&mut self, kept: &Tensor, tokens: [u32; LABELS.len()], rect: [f32; 4]) {
        let bars = Bars {
            rect,
            window: self.size.map(|side| side as f32),
            row: (ROW * kept.stride()) as u32,
            n_labels: LABELS.len() as u32,
            tokens,
        };
        self.queue.write_buffer(&self.bars_uniform, 0, bytemuck::bytes_of(&bars));
        let bindings = [self.bars_uniform.as_entire_binding(), kept.buffer().as_entire_binding()];
        self.bars_group = Some(group(&self.device, &self.bars, &bindings));
    }

    pub fn has_bars(&self) -> bool {
        self.bars_group.is_some()
    }

    /// What the next frame shows.
    pub fn prepare(&mut self, scene: Scene, quads: &[Quad]) {
        let sides = self.size.map(|side| (side as f32 * self.detail.scale).ceil());
        let scene = Scene { size: sides, samples: self.detail.samples as f32, ..scene };
        self.queue.write_buffer(&self.scene_uniform, 0, bytemuck::bytes_of(&scene));
        let window = self.size.map(|side| side as f32);
        self.queue.write_buffer(&self.window_uniform, 0, bytemuck::bytes_of(&window));
        let quads = &quads[..quads.len().min(MAX_QUADS)];
        self.queue.write_buffer(&self.quads, 0, bytemuck::cast_slice(quads));
        self.n_quads = quads.len() as u32;
    }

    /// Records the scene alone.
    pub fn draw_scene(&self, encoder: &mut wgpu::CommandEncoder) {
        let mut pass = pass(encoder, &self.picture);
        pass.set_pipeline(&self.scene);
        pass.set_bind_group(0, &self.scene_group, &[]);
        pass.draw(0..3, 0..1);
    }

    /// Records a frame. What the guest recorded before has left its probabilities by then.
    pub fn draw(&self, target: &wgpu::TextureView) -> wgpu::CommandBuffer {
        let mut encoder = self.device.create_command_encoder(&Default::default());
        self.draw_scene(&mut encoder);
        let mut pass = pass(&mut encoder, target);
        pass.set_pipeline(&self.enlarge);
        pass.set_bind_group(0, &self.picture_group, &[]);
        pass.draw(0..3, 0..1);
        pass.set_pipeline(&self.overlay);
        pass.set_bind_group(0, &self.overlay_group, &[]);
        pass.set_vertex_buffer(0, self.quads.slice(..));
        pass.draw(0..4, 0..self.n_quads);
        if let Some(group) = &self.bars_group {
            pass.set_pipeline(&self.bars);
            pass.set_bind_group(0, group, &[]);
            pass.draw(0..4, 0..LABELS.len() as u32);
        }
        drop(pass);
        encoder.finish()
    }

    /// Draws a frame into a texture of its own, waits for it, and returns its pixels: RGB, row by row.
    pub fn screenshot(&self) -> Vec<u8> {
        let [width, height] = self.size;
        let texture = self.device.create_texture(&target(
            self.format,
            self.size,
            wgpu::TextureUsages::RENDER_ATTACHMENT | wgpu::TextureUsages::COPY_SRC,
        ));
        let row = (4 * width).next_multiple_of(wgpu::COPY_BYTES_PER_ROW_ALIGNMENT);
        let buffer = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("screenshot"),
            size: u64::from(row * height),
            usage: wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::MAP_READ,
            mapped_at_creation: false,
        });
        let frame = self.draw(&texture.create_view(&Default::default()));
        let mut encoder = self.device.create_command_encoder(&Default::default());
        encoder.copy_texture_to_buffer(
            texture.as_image_copy(),
            wgpu::TexelCopyBufferInfo {
                buffer: &buffer,
                layout: wgpu::TexelCopyBufferLayout {
                    offset: 0,
                    bytes_per_row: Some(row),
                    rows_per_image: None,
                },
            },
            texture.size(),
        );
        self.queue.submit([frame, encoder.finish()]);
        buffer.map_async(wgpu::MapMode::Read, .., |mapped| mapped.expect("it can be mapped"));
        self.wait();
        let bytes = buffer.get_mapped_range(..).expect("it is mapped");
        let is_bgra =
            matches!(self.format, wgpu::TextureFormat::Bgra8Unorm | wgpu::TextureFormat::Bgra8UnormSrgb);
        let rows = bytes.chunks(row as usize).flat_map(|row| row[..4 * width as usize].chunks(4));
        rows.flat_map(|p| if is_bgra { [p[2], p[1], p[0]] } else { [p[0], p[1], p[2]] }).collect()
    }

    /// Waits for all that was submitted: the renderer owns the device, and may.
    pub fn wait(&self) {
        self.device.poll(wgpu::PollType::wait_indefinitely()).expect("the device works");
    }
}

fn group(
    device: &wgpu::Device,
    pipeline: &wgpu::RenderPipeline,
    bindings: &[wgpu::BindingResource<'_>],
) -> wgpu::BindGroup {
    let entry =
        |(binding, resource): (u32, &_)| wgpu::BindGroupEntry { binding, resource: Clone::clone(resource) };
    let entries: Vec<_> = (0..).zip(bindings).map(entry).collect();
    device.create_bind_group(&wgpu::BindGroupDescriptor {
        label: None,
        layout: &pipeline.get_bind_group_layout(0),
        entries: &entries,
    })
}

fn target(
    format: wgpu::TextureFormat,
    [width, height]: [u32; 2],
    usage: wgpu::TextureUsages,
) -> wgpu::TextureDescriptor<'static> {
    wgpu::TextureDescriptor {
        label: Some("target"),
        size: wgpu::Extent3d { width, height, depth_or_array_layers: 1 },
        mip_level_count: 1,
        sample_count: 1,
        dimension: wgpu::TextureDimension::D2,
        format,
        usage,
        view_formats: &[],
    }
}

/// The texture that the scene is drawn into.
fn picture(
    device: &wgpu::Device,
    enlarge: &wgpu::RenderPipeline,
    linear: &wgpu::Sampler,
    format: wgpu::TextureFormat,
    size: [u32; 2],
    scale: f32,
) -> (wgpu::TextureView, wgpu::BindGroup) {
    let size = size.map(|side| ((side as f32 * scale).ceil() as u32).max(1));
    let usage = wgpu::TextureUsages::RENDER_ATTACHMENT | wgpu::TextureUsages::TEXTURE_BINDING;
    let view = device.create_texture(&target(format, size, usage)).create_view(&Default::default());
    let bindings = [wgpu::BindingResource::TextureView(&view), wgpu::BindingResource::Sampler(linear)];
    let group = group(device, enlarge, &bindings);
    (view, group)
}

fn pass<'a>(encoder: &'a mut wgpu::CommandEncoder, target: &'a wgpu::TextureView) -> wgpu::RenderPass<'a> {
    encoder.begin_render_pass(&wgpu::RenderPassDescriptor {
        label: None,
        color_attachments: &[Some(wgpu::RenderPassColorAttachment {
            view: target,
            depth_slice: None,
            resolve_target: None,
            ops: wgpu::Operations {
                load: wgpu::LoadOp::Clear(wgpu::Color::BLACK),
                store: wgpu::StoreOp::Store,
            },
        })],
        ..Default::default()
    })
}
