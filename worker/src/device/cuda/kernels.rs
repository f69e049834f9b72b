//! The kernels' sources and names. A source is compiled after `common.cuh` and its own header, as one text: NVRTC sees no files.

/// A file that sources begin with.
#[derive(Debug, Clone, Copy)]
pub struct Header {
    pub file: &'static str,
    pub text: &'static str,
}

/// A file of kernels.
#[derive(Debug, Clone, Copy)]
pub struct Source {
    pub file: &'static str,
    /// Besides [`COMMON`].
    pub header: Option<Header>,
    pub text: &'static str,
    /// `extern "C"` names.
    pub kernels: &'static [&'static str],
}

pub const COMMON: Header = Header { file: "common.cuh", text: include_str!("kernels/common.cuh") };
const ATTENTION: Header = Header { file: "attention.cuh", text: include_str!("kernels/attention.cuh") };

impl Source {
    /// All that the compiler reads, by line numbers of the files.
    pub fn translation_unit(&self) -> String {
        let own = Header { file: self.file, text: self.text };
        let parts = [Some(COMMON), self.header, Some(own)];
        parts.into_iter().flatten().map(|part| format!("#line 1 \"{}\"\n{}\n", part.file, part.text)).collect()
    }
}

pub const SOURCES: &[Source] = &[
    Source {
        file: "attention_mma.cu",
        header: Some(ATTENTION),
        text: include_str!("kernels/attention_mma.cu"),
        kernels: &[
            "attention_bf16_32",
            "attention_bf16_64",
            "attention_bf16_128",
            "attention_cached_bf16_32",
            "attention_cached_bf16_64",
            "attention_cached_bf16_128",
            "attention_dq_bf16_32",
            "attention_dq_bf16_64",
            "attention_dq_bf16_128",
            "attention_dkv_bf16_32",
            "attention_dkv_bf16_64",
            "attention_dkv_bf16_128",
        ],
    },
    Source {
        file: "attention.cu",
        header: Some(ATTENTION),
        text: include_str!("kernels/attention.cu"),
        kernels: &[
            "attention_delta",
            "attention_f32_64",
            "attention_f32_128",
            "attention_f32_256",
            "cache_rows",
            "attention_cached_f32_64",
            "attention_cached_f32_128",
            "attention_cached_f32_256",
            "attention_dq_f32_64",
            "attention_dq_f32_128",
            "attention_dq_f32_256",
            "attention_dkv_f32_64",
            "attention_dkv_f32_128",
            "attention_dkv_f32_256",
        ],
    },
    Source {
        file: "products.cu",
        header: None,
        text: include_str!("kernels/products.cu"),
        kernels: &[
            "grouped_f32_y",
            "grouped_f32_dx",
            "grouped_f32_dw",
            "grouped_bf16_y",
            "grouped_bf16_dx",
            "grouped_bf16_dw",
            "grouped_tf32_y",
            "grouped_tf32_dx",
            "grouped_tf32_dw",
            "matmul_f32_nn",
            "matmul_f32_nt",
            "matmul_f32_tn",
            "matmul_f32_tt",
            "matmul_bf16_nn",
            "matmul_bf16_nt",
            "matmul_bf16_tn",
            "matmul_bf16_tt",
            "matmul_tf32_nn",
            "matmul_tf32_nt",
            "matmul_tf32_tn",
            "matmul_tf32_tt",
        ],
    },
    Source {
        file: "layers.cu",
        header: None,
        text: include_str!("kernels/layers.cu"),
        kernels: &[
            "embedding",
            "embedding_backward",
            "rms_norm",
            "rms_norm_backward",
            "rms_norm_dw",
            "rope",
            "swiglu",
            "swiglu_backward",
            "routed_swiglu",
            "routed_swiglu_backward",
        ],
    },
    Source {
        file: "loss.cu",
        header: None,
        text: include_str!("kernels/loss.cu"),
        kernels: &["cross_entropy_local", "cross_entropy_combine", "cross_entropy_backward"],
    },
    Source {
        file: "moe.cu",
        header: None,
        text: include_str!("kernels/moe.cu"),
        kernels: &[
            "route",
            "route_backward",
            "group_count",
            "group_scan",
            "group_place",
            "gather_rows",
            "combine_rows",
        ],
    },
    Source {
        file: "vector.cu",
        header: None,
        text: include_str!("kernels/vector.cu"),
        kernels: &[
            "fill",
            "add",
            "add_assign",
            "scale",
            "keep_rows",
            "scale_rows",
            "sum_parts",
            "sum_final",
            "not_finite",
            "to_bf16",
            "adamw",
            "digest",
            "sum_rows",
        ],
    },
];

/// Digest of all sources: kernels of equal digest, options and compiler give equal bits.
pub fn digest() -> String {
    let mut hasher = blake3::Hasher::new();
    for source in SOURCES {
        hasher.update(source.translation_unit().as_bytes());
        hasher.update(&[0]);
    }
    hasher.finalize().to_hex()[..12].to_string()
}
