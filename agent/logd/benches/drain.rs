//! Cost of draining: CPU for each megabyte at rates of containers, the highest throughput, memory.
//!
//! Every line is `name value unit`. The CPU time is logd's own, user and system, without the
//! writer's.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_precision_loss,
    missing_docs,
    reason = "a measuring program"
)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::{
    io::Write,
    thread,
    time::{Duration, Instant},
};
use support::*;

const MB: usize = 1_000_000;

fn lines(bytes: usize, length: usize) -> Vec<u8> {
    let line = format!("{}\n", "x".repeat(length - 1));
    line.repeat(bytes.div_ceil(length)).into_bytes()
}

/// One container that writes pieces of this size at this rate (0: as fast as possible).
async fn one(name: &str, max_size: u64, line: usize, piece: usize, rate: usize, total: usize) {
    let node = Node { max_size, ..Node::new() };
    let _state = Tmpfs::mount(node.roots.runtime_state.clone(), 64 * MB);
    // The directory is on a tmpfs, as on a real node. Writes to a disk would cost that disk's time.
    let _state = Tmpfs::mount(node.roots.runtime_state.clone(), 64 * MB);
    let logd = node.start().await;
    let client = node.client();
    let spec = node.spec("bench");
    let mut shim = Shim::open(&client.register(spec.clone()).await.unwrap());
    let block = lines(MB, line);
    let (cpu, start) = (logd.cpu(), Instant::now());
    let writer = thread::spawn(move || {
        let (start, mut done, mut slowest) = (Instant::now(), 0, Duration::ZERO);
        while done < total {
            for chunk in block.chunks(piece) {
                if rate > 0 {
                    let due = Duration::from_secs_f64(done as f64 / rate as f64);
                    if let Some(early) = due.checked_sub(start.elapsed()) {
                        thread::sleep(early);
                    }
                }
                let before = Instant::now();
                shim.out.write_all(chunk).unwrap();
                slowest = slowest.max(before.elapsed());
                done += chunk.len();
            }
        }
        slowest
    });
    let slowest = tokio::task::spawn_blocking(|| writer.join().unwrap()).await.unwrap();
    let report = client.finish(&spec.id).await.unwrap();
    let wall = start.elapsed();
    let mb = report.bytes as f64 / MB as f64;
    println!("{name}_cpu {:.3} ms/MB", (logd.cpu() - cpu).as_secs_f64() * 1000.0 / mb);
    println!("{name}_rate {:.1} MB/s", mb / wall.as_secs_f64());
    println!("{name}_slowest_write {:.2} ms", slowest.as_secs_f64() * 1000.0);
    println!("{name}_rss {} kB", logd.rss());
}

async fn hundred() {
    let node = Node::new();
    // The directory is on a tmpfs, as on a real node. Writes to a disk would cost that disk's time.
    let _state = Tmpfs::mount(node.roots.runtime_state.clone(), 64 * MB);
    let logd = node.start().await;
    println!("streams_0_rss {} kB", logd.rss());
    let client = node.client();
    let start = Instant::now();
    let mut shims = Vec::new();
    for n in 0..100 {
        shims.push(Shim::open(&client.register(node.spec(&format!("s-{n}"))).await.unwrap()));
    }
    println!("register {:.3} ms", start.elapsed().as_secs_f64() * 10.0);
    println!("streams_100_rss {} kB", logd.rss());
    let cpu = logd.cpu();
    tokio::time::sleep(Duration::from_secs(2)).await;
    println!("streams_100_idle_cpu {:.3} ms in 2 s", (logd.cpu() - cpu).as_secs_f64() * 1000.0);
    // Each container writes a line a second, and unfinished lines.
    for round in 0..3 {
        for shim in &mut shims {
            write!(shim.out, "line {round}\nbegun").unwrap();
            thread::sleep(Duration::from_millis(5));
        }
    }
    println!("streams_100_line_cpu {:.4} ms/line", (logd.cpu() - cpu).as_secs_f64() * 1000.0 / 300.0);
    println!("streams_100_busy_rss {} kB", logd.rss());
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    if is_role() {
        return tokio::task::spawn_blocking(act_or_check).await.unwrap();
    }
    hundred().await;
    const SIZE: u64 = 10 << 20;
    one("at_5_lines_of_100_not_rotated", SIZE << 10, 100, 100, 5 * MB, 15 * MB).await;
    one("at_5_lines_of_100", SIZE, 100, 100, 5 * MB, 30 * MB).await;
    one("at_5_pieces_of_32k", SIZE, 100, 32_768, 5 * MB, 30 * MB).await;
    one("burst_lines_of_100", SIZE, 100, 32_768, 0, 600 * MB).await;
    one("burst_lines_of_1000", SIZE, 1000, 32_768, 0, 600 * MB).await;
}
