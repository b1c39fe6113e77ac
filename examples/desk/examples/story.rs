//! The first program of an egui author: a story, written while the window is drawn.

use std::{sync::Arc, time::Duration};

use eframe::{egui, egui_wgpu};
use wginfer::checkpoint::ModelFiles;
use wginfer::engine::{Engine, EngineOptions, Event, Request};
use wginfer::gpu::Gpu;

struct Story(Engine, String);

fn main() -> eframe::Result {
    let mut options = eframe::NativeOptions::default();
    options.wgpu_options.wgpu_setup = egui_wgpu::WgpuSetup::CreateNew(egui_wgpu::WgpuSetupCreateNew {
        device_descriptor: Arc::new(Gpu::required), // what the library asks of egui's device
        ..egui_wgpu::WgpuSetupCreateNew::without_display_handle()
    });
    let create: eframe::AppCreator<'_> = Box::new(|creation| {
        let state = creation.wgpu_render_state.as_ref().ok_or("egui renders without wgpu")?;
        let gpu = Gpu::adopt(state.device.clone(), state.queue.clone())?;
        let mut engine = Engine::load(&gpu, ModelFiles::demo()?, EngineOptions::default(), &mut |_| {})?;
        engine.submit(Request::text(&engine, "Once upon a time")?)?;
        Ok(Box::new(Story(engine, "Once upon a time".into())))
    });
    eframe::run_native("story", options, create)
}

impl eframe::App for Story {
    fn ui(&mut self, ui: &mut egui::Ui, frame: &mut eframe::Frame) {
        let Story(engine, story) = self;
        let queue = &frame.wgpu_render_state().expect("egui renders with wgpu").queue;
        queue.submit(engine.advance(Duration::from_millis(4)).unwrap_or_default()); // nothing waits
        for event in engine.events().unwrap_or_default() {
            if let Event::Token { text, .. } = event {
                *story += &text;
            }
        }
        egui::CentralPanel::default().show(ui, |ui| ui.label(&*story));
        ui.ctx().request_repaint();
    }
}
