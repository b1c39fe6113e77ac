use std::io::BufRead;
use wginfer::engine::*;
use wginfer::gpu::*;
use wginfer::text::Message;
fn main() {
    let gpu = Gpu::open(&GpuOptions::default()).unwrap();
    let mut e = Engine::load(
        &gpu,
        Checkpoint::demo().unwrap(),
        EngineOptions { max_seqs: 16, ..Default::default() },
        &mut |_| {},
    )
    .unwrap();
    let t = e.tokenizer().unwrap().clone();
    let tpl = t.chat_template().unwrap();
    let mut ids = vec![];
    for line in std::io::stdin().lock().lines() {
        let m: Vec<Message> = serde_json::from_str(&line.unwrap()).unwrap();
        let text = tpl.render(&m, true, &Default::default()).unwrap();
        let p = t.encode(&text, false).unwrap();
        ids.push(
            e.submit(Request { sampling: Sampling::greedy(), max_tokens: Some(60), ..Request::new(p) })
                .unwrap(),
        );
    }
    let mut out = std::collections::HashMap::<RequestId, String>::new();
    e.run(|ev| match ev {
        Event::Token { id, text, .. } | Event::Done { id, text, .. } => {
            out.entry(id).or_default().push_str(&text)
        }
        _ => {}
    })
    .unwrap();
    for id in ids {
        println!("{}", serde_json::to_string(&out[&id]).unwrap());
    }
}
