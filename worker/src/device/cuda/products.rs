//! Products by cuBLASLt.
//!
//! The library's matrices are column-major, so `c = a b` row-major is asked for as `c^T = b^T a^T`. Its algorithm is chosen once by
//! shape, layout and alignment and then kept, so equal products have equal bits. Sums that are split over blocks may be combined only
//! out of place, in a fixed order.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::sync::Mutex;

use cudarc::cublaslt::{result, sys};

use super::block::ALIGNMENT;
use super::runtime::{DevicePtr, Factor, Product};
use crate::device::Products;
use crate::sync::lock;

/// Bytes of workspace that cuBLASLt may use; NVIDIA's advice for Hopper.
pub(super) const WORKSPACE_BYTES: usize = 32 << 20;

/// What decides the algorithm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    products: Products,
    dims: [usize; 3],
    ld: [usize; 2],
    transposed: [bool; 2],
    /// Bytes, of a, b and c.
    alignment: [u32; 3],
    reads_c: bool,
}

impl Key {
    fn new(p: &Product) -> Key {
        Key {
            products: p.products,
            dims: [p.m, p.n, p.k],
            ld: [p.a.ld, p.b.ld],
            transposed: [p.a.transposed, p.b.transposed],
            alignment: [p.a.ptr, p.b.ptr, p.c].map(alignment),
            reads_c: p.beta != 0.0,
        }
    }
}

/// The largest power of two up to [`ALIGNMENT`] that divides an address.
fn alignment(ptr: DevicePtr) -> u32 {
    1 << ptr.trailing_zeros().min(ALIGNMENT.trailing_zeros())
}

/// Descriptors and algorithm of one kind of product. They live as long as the process.
struct ProductPlan {
    operation: sys::cublasLtMatmulDesc_t,
    /// Of `b^T`, `a^T` and `c^T`.
    layouts: [sys::cublasLtMatrixLayout_t; 3],
    algorithm: sys::cublasLtMatmulAlgo_t,
}

/// The library. One for a device.
pub struct Library {
    handle: sys::cublasLtHandle_t,
    /// `None`: the library has no algorithm.
    plans: Mutex<BTreeMap<Key, Option<ProductPlan>>>,
}

/// cuBLASLt can be loaded.
pub fn is_present() -> bool {
    // SAFETY: loads a library and lets go of it; its initializers are NVIDIA's.
    unsafe { sys::is_culib_present() }
}

impl Library {
    /// The context must be current.
    pub fn new() -> Result<Library, result::CublasError> {
        Ok(Library { handle: result::create_handle()?, plans: Mutex::new(BTreeMap::new()) })
    }

    pub fn version(&self) -> usize {
        // SAFETY: no arguments.
        unsafe { sys::cublasLtGetVersion() }
    }

    pub fn multiplies(&self, p: &Product) -> bool {
        let mut plans = lock(&self.plans);
        plans.entry(Key::new(p)).or_insert_with(|| self.plan(p).ok()).is_some()
    }

    /// # Safety
    ///
    /// The matrices and the workspace are there, and the stream's context is current.
    pub unsafe fn multiply(
        &self,
        p: &Product,
        workspace: (DevicePtr, usize),
        stream: sys::cudaStream_t,
    ) -> Result<(), result::CublasError> {
        let mut plans = lock(&self.plans);
        let plan = plans.entry(Key::new(p)).or_insert_with(|| self.plan(p).ok());
        let plan = plan.as_ref().expect("the library was asked whether it multiplies these");
        let ptr = |p: DevicePtr| p as *mut c_void;
        let ([first, second, to], c) = (plan.layouts, ptr(p.c));
        // SAFETY: the plan's descriptors are of this product; the caller answers for the memory.
        unsafe {
            result::matmul(
                self.handle,
                plan.operation,
                (&raw const p.alpha).cast(),
                (&raw const p.beta).cast(),
                ptr(p.b.ptr),
                first,
                ptr(p.a.ptr),
                second,
                c,
                to,
                c,
                to,
                &plan.algorithm,
                ptr(workspace.0),
                workspace.1,
                stream,
            )
        }
    }

    fn plan(&self, p: &Product) -> Result<ProductPlan, result::CublasError> {
        use sys::cublasComputeType_t as Compute;
        let (compute, element) = match p.products {
            Products::F32 => (Compute::CUBLAS_COMPUTE_32F, sys::cudaDataType::CUDA_R_32F),
            Products::Tf32 => (Compute::CUBLAS_COMPUTE_32F_FAST_TF32, sys::cudaDataType::CUDA_R_32F),
            Products::Bf16 => (Compute::CUBLAS_COMPUTE_32F, sys::cudaDataType::CUDA_R_16BF),
        };
        let operation = result::create_matmul_desc(compute, sys::cudaDataType::CUDA_R_32F)?;
        let turns = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA;
        let turns_second = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSB;
        for (attribute, factor) in [(turns, p.b), (turns_second, p.a)] {
            let turn = i32::from(factor.transposed);
            // SAFETY: the descriptor is alive and takes an `int32_t`, 0 or 1 (`CUBLAS_OP_N`, `CUBLAS_OP_T`).
            unsafe { result::set_matmul_desc_attribute(operation, attribute, (&raw const turn).cast(), 4)? };
        }
        // Row-major `(r, c)` with `ld` is column-major `(c, r)` with `ld`.
        let layout = |factor: &Factor, rows: usize, cols: usize| {
            let (rows, cols) = if factor.transposed { (rows, cols) } else { (cols, rows) };
            result::create_matrix_layout(element, rows as u64, cols as u64, factor.ld as i64)
        };
        let to = result::create_matrix_layout(sys::cudaDataType::CUDA_R_32F, p.n as u64, p.m as u64, p.n as i64)?;
        let layouts = [layout(&p.b, p.k, p.n)?, layout(&p.a, p.m, p.k)?, to];
        let algorithm = self.algorithm(p, operation, layouts)?;
        Ok(ProductPlan { operation, layouts, algorithm })
    }

    fn algorithm(
        &self,
        p: &Product,
        operation: sys::cublasLtMatmulDesc_t,
        layouts: [sys::cublasLtMatrixLayout_t; 3],
    ) -> Result<sys::cublasLtMatmulAlgo_t, result::CublasError> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
        let preference = result::create_matmul_pref()?;
        let workspace = WORKSPACE_BYTES as u64;
        let out_of_place = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
        let [a, b, c] = [p.a.ptr, p.b.ptr, p.c].map(alignment);
        let u32s = [
            (Attribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, out_of_place),
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, b),
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, a),
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, c),
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, c),
        ];
        // SAFETY: the preference is alive; these attributes are a `uint64_t` and `uint32_t`s, and they are copied.
        let set = unsafe {
            let most = Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
            let bytes = result::set_matmul_pref_attribute(preference, most, (&raw const workspace).cast(), 8);
            u32s.iter().fold(bytes, |set, (attribute, value)| {
                set.and(result::set_matmul_pref_attribute(preference, *attribute, (value as *const u32).cast(), 4))
            })
        };
        let [first, second, to] = layouts;
        let found = set.and_then(|()| {
            // SAFETY: all descriptors are alive.
            unsafe { result::get_matmul_algo_heuristic(self.handle, operation, first, second, to, to, preference) }
        });
        // SAFETY: made above, destroyed once.
        unsafe { result::destroy_matmul_pref(preference)? };
        Ok(found?.algo)
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        // SAFETY: made by `new`, destroyed once. That it cannot be destroyed would be a leak and no more.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}
