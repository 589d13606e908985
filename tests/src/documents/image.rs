//! Pictures as PNG: one as it was taken, or several as an animation of few colours.

use std::collections::HashMap;
use std::io::Cursor;

use anyhow::{Context, Result, ensure};
use png::{BitDepth, BlendOp, ColorType, Compression, Encoder};

/// The colour that stands for "as before". The others are of the picture.
const SAME: u8 = 255;

/// A picture in memory.
#[derive(Clone, PartialEq)]
pub struct Pixels {
    width: u32,
    height: u32,
    rgb: Vec<[u8; 3]>,
}

impl Pixels {
    /// Reads what a browser gives: eight bits a colour.
    pub fn decode(png: &[u8]) -> Result<Self> {
        let mut reader = png::Decoder::new(Cursor::new(png)).read_info()?;
        let mut bytes = vec![0; reader.output_buffer_size().context("too big a picture")?];
        let frame = reader.next_frame(&mut bytes)?;
        ensure!(frame.bit_depth == BitDepth::Eight, "{:?}", frame.bit_depth);
        let samples = frame.color_type.samples();
        ensure!(samples >= 3, "a picture without colours");
        let bytes = &bytes[..frame.buffer_size()];
        Ok(Self {
            width: frame.width,
            height: frame.height,
            rgb: bytes
                .chunks_exact(samples)
                .map(|p| [p[0], p[1], p[2]])
                .collect(),
        })
    }
}

/// The most frequent colours, at most as many as there is room for, and for each colour the
/// nearest of them. On pages of flat colours and text no eye tells the difference.
fn palette(frames: &[Pixels]) -> (Vec<[u8; 3]>, HashMap<[u8; 3], u8>) {
    let mut count: HashMap<[u8; 3], u64> = HashMap::new();
    for pixel in frames.iter().flat_map(|frame| &frame.rgb) {
        *count.entry(*pixel).or_default() += 1;
    }
    let mut colours: Vec<_> = count.into_iter().collect();
    colours.sort_by_key(|(colour, count)| (u64::MAX - count, *colour));
    let palette: Vec<[u8; 3]> = colours
        .iter()
        .take(usize::from(SAME))
        .map(|(colour, _)| *colour)
        .collect();
    let distance = |a: &[u8; 3], b: &[u8; 3]| -> u32 {
        a.iter()
            .zip(b)
            .map(|(a, b)| u32::from(a.abs_diff(*b)).pow(2))
            .sum()
    };
    let nearest = |colour: &[u8; 3]| {
        let all = (0..).zip(&palette);
        let best = all.min_by_key(|(_, known)| distance(known, colour));
        best.map_or(0, |(index, _)| index)
    };
    let map = colours
        .iter()
        .map(|(colour, _)| (*colour, nearest(colour)))
        .collect();
    (palette, map)
}

/// One frame of an animation: what it shows, and for how many milliseconds.
pub struct Frame {
    /// The picture.
    pub pixels: Pixels,
    /// How long it stands.
    pub milliseconds: u16,
}

/// A rectangle: left, top, width, height.
type Area = (u32, u32, u32, u32);

/// The smallest rectangle outside of which both are the same.
fn changed(before: &[u8], after: &[u8], width: u32) -> Area {
    let different = (0u32..)
        .zip(before.iter().zip(after))
        .filter(|(_, (a, b))| a != b);
    let places = different.map(|(at, _)| (at % width, at / width));
    // A frame that shows nothing new is one pixel.
    let edges = places.fold(None, |edges: Option<[u32; 4]>, (x, y)| {
        let [left, top, right, bottom] = edges.unwrap_or([x, y, x, y]);
        Some([left.min(x), top.min(y), right.max(x), bottom.max(y)])
    });
    let [left, top, right, bottom] = edges.unwrap_or([0; 4]);
    (left, top, right - left + 1, bottom - top + 1)
}

/// The pictures in turn, for ever (APNG); or one that stands. `about` is written into it.
pub fn encode(frames: &[Frame], about: &[(&str, String)]) -> Result<Vec<u8>> {
    let pictures: Vec<Pixels> = frames.iter().map(|frame| frame.pixels.clone()).collect();
    let first = pictures.first().context("no picture")?;
    let (width, height) = (first.width, first.height);
    ensure!(
        pictures
            .iter()
            .all(|p| (p.width, p.height) == (width, height)),
        "pictures of several sizes"
    );
    let (palette, index) = palette(&pictures);
    let mut transparency = vec![255; usize::from(SAME)];
    transparency.push(0);
    let mut colours = palette.concat();
    colours.resize(3 * (usize::from(SAME) + 1), 0);

    let mut png = Vec::new();
    let mut encoder = Encoder::new(&mut png, width, height);
    encoder.set_color(ColorType::Indexed);
    encoder.set_depth(BitDepth::Eight);
    encoder.set_palette(colours);
    encoder.set_trns(transparency);
    encoder.set_compression(Compression::High);
    encoder.set_filter(png::Filter::NoFilter);
    for (keyword, text) in about {
        encoder.add_text_chunk((*keyword).to_owned(), text.clone())?;
    }
    if frames.len() > 1 {
        encoder.set_animated(u32::try_from(frames.len())?, 0)?;
    }
    let mut writer = encoder.write_header()?;
    let mut before: Option<Vec<u8>> = None;
    for (frame, picture) in frames.iter().zip(&pictures) {
        let now: Vec<u8> = picture.rgb.iter().map(|pixel| index[pixel]).collect();
        if frames.len() > 1 {
            writer.set_frame_delay(frame.milliseconds, 1000)?;
        }
        match &before {
            None => writer.write_image_data(&now)?,
            Some(before) => {
                let (left, top, across, down) = changed(before, &now, width);
                writer.reset_frame_position()?;
                writer.set_frame_dimension(across, down)?;
                writer.set_frame_position(left, top)?;
                writer.set_blend_op(BlendOp::Over)?;
                let mut part = Vec::new();
                for y in top..top + down {
                    let from = (y * width + left) as usize;
                    let row = from..from + across as usize;
                    let pixels = before[row.clone()].iter().zip(&now[row]);
                    part.extend(pixels.map(|(old, new)| if old == new { SAME } else { *new }));
                }
                writer.write_image_data(&part)?;
            }
        }
        before = Some(now);
    }
    writer.finish()?;
    Ok(png)
}

/// What is written in a PNG under `keyword`.
pub fn about(png: &[u8], keyword: &str) -> Option<String> {
    let reader = png::Decoder::new(Cursor::new(png)).read_info().ok()?;
    let texts = &reader.info().uncompressed_latin1_text;
    let found = texts.iter().find(|chunk| chunk.keyword == keyword);
    found.map(|chunk| chunk.text.clone())
}
