// SPDX-License-Identifier: MIT
//! Random 4 KiB writes to a new image, each the first to its cluster of 64 KiB, through qcow2-rs on io_uring
//! with direct I/O. Prints writes per second.
//!
//!     qcow2_rs_bench IMAGE COUNT DEPTH

use futures::stream::{FuturesUnordered, StreamExt};
use qcow2_rs::dev::Qcow2DevParams;
use qcow2_rs::helpers::Qcow2IoBuf;
use qcow2_rs::utils::qcow2_setup_dev_uring;
use std::path::Path;
use std::time::Instant;

const STEP: u64 = 65536;
const BLOCK: usize = 4096;

/// Every cluster once: a permutation by a multiplier that is coprime to count.
fn offsets(count: u64) -> impl Iterator<Item = u64> {
    fn gcd(a: u64, b: u64) -> u64 {
        if b == 0 { a } else { gcd(b, a % b) }
    }
    let mut factor = count * 5 / 8 | 1;
    while gcd(factor, count) != 1 {
        factor += 2;
    }
    (0..count).map(move |i| ((i as u128 * factor as u128) % count as u128) as u64 * STEP)
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if args.len() != 4 {
        eprintln!("usage: qcow2_rs_bench IMAGE COUNT DEPTH");
        std::process::exit(2);
    }
    let count: u64 = args[2].parse().expect("COUNT is a number");
    let depth: usize = args[3].parse().expect("DEPTH is a number");
    tokio_uring::start(async {
        let params = Qcow2DevParams::new(9, None, None, false, true);
        let dev = qcow2_setup_dev_uring(Path::new(&args[1]), &params).await.expect("the image opens");
        let mut buf = Qcow2IoBuf::<u8>::new(BLOCK);
        buf.fill(0x5a);
        let (dev, buf) = (&dev, &buf);
        let start = Instant::now();
        let mut next = offsets(count);
        let mut in_flight = FuturesUnordered::new();
        for off in next.by_ref().take(depth) {
            in_flight.push(dev.write_at(&buf[..], off));
        }
        while let Some(result) = in_flight.next().await {
            result.expect("the write succeeds");
            if let Some(off) = next.next() {
                in_flight.push(dev.write_at(&buf[..], off));
            }
        }
        println!("{:.0}", count as f64 / start.elapsed().as_secs_f64());
        dev.flush_meta().await.expect("the flush succeeds");
    });
}
