//! Runs the instructions of tiles on a processor that has none: each is an illegal instruction there, which ends in a signal, and the
//! handler does what it says by [`Emulated`] and goes on behind it. So tests run the assembly itself: which tiles it names, in which order,
//! with which addresses and strides.
//!
//! What is not such an instruction, or one where no tiles are configured, ends the process by the signal, as it would without this.

use std::cell::UnsafeCell;
use std::ptr;
use std::sync::Once;

use super::emulation::Emulated;
use super::{CONFIG, Config};

struct State {
    is_configured: bool,
    tiles: Emulated,
    /// Instructions that were emulated.
    num: u64,
}

thread_local! {
    static STATE: UnsafeCell<State> =
        const { UnsafeCell::new(State { is_configured: false, tiles: Emulated::zeros(), num: 0 }) };
}

/// Instructions of this thread that were emulated, and whether tiles are configured.
pub fn seen() -> (u64, bool) {
    // SAFETY: the handler of this thread runs only at an instruction of tiles.
    STATE.with(|state| unsafe { ((*state.get()).num, (*state.get()).is_configured) })
}

/// Has instructions of tiles that are illegal emulated, in this process and from now on.
pub fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: zeros are an empty action, which is then filled; the handler keeps to what a signal that an instruction raised may do:
        // it allocates nothing and takes no lock.
        let status = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO;
            libc::sigaction(libc::SIGILL, &action, ptr::null_mut())
        };
        assert_eq!(status, 0, "a handler for SIGILL");
    });
}

extern "C" fn handler(_signal: libc::c_int, _info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel gives the registers of the instruction that raised the signal, which is this thread's.
    let is_done = STATE.with(|state| unsafe {
        let registers = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
        emulate(registers, &mut *state.get())
    });
    if !is_done {
        // SAFETY: the instruction raises the signal again, which then ends the process.
        unsafe { libc::signal(libc::SIGILL, libc::SIG_DFL) };
    }
}

/// The general registers by their number in an instruction.
const NUMBERED: [libc::c_int; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

/// Does the instruction at `rip` and goes behind it; false if it is none of those for tiles. They have a VEX prefix of three bytes, an
/// opcode of the map `0F38`, ModRM, and where that says memory a SIB and a displacement ("Intel 64 and IA-32 Architectures Software
/// Developer's Manual", volume 2, 2.3 and the pages of the instructions).
// SAFETY: whoever calls has the registers of an instruction of this thread.
unsafe fn emulate(registers: &mut [i64; 23], state: &mut State) -> bool {
    let rip = registers[libc::REG_RIP as usize] as *const u8;
    // SAFETY: an instruction that was fetched; those that follow are in the same function.
    let byte = |i: usize| unsafe { usize::from(*rip.add(i)) };
    let (map, vex, opcode, mod_rm) = (byte(1), byte(2), byte(3), byte(4));
    if byte(0) != 0xc4 || map & 0x1f != 2 || vex & 0x84 != 0 {
        return false;
    }
    let (prefix, mode, reg, rm) = (vex & 3, mod_rm >> 6, mod_rm >> 3 & 7, mod_rm & 7);
    let is_register = mode == 3;
    let register = |number: usize| registers[NUMBERED[number] as usize] as usize;
    // Prefixes have the highest bits of numbers of registers inverted.
    let (index_bit, base_bit) = ((!map >> 6 & 1) << 3, (!map >> 5 & 1) << 3);
    let (mut length, mut address, mut stride) = (5, 0, 0);
    if !is_register {
        let mut base = rm;
        if rm == 4 {
            let sib = byte(5);
            base = sib & 7;
            // Number 4 is no index.
            let index = (sib >> 3 & 7) | index_bit;
            stride = if index == 4 { 0 } else { register(index) << (sib >> 6) };
            length += 1;
        }
        if mode == 0 && base == 5 {
            return false;
        }
        let displacement = match mode {
            0 => 0,
            1 => byte(length) as u8 as i8 as isize,
            _ => (0..4).fold(0, |x, i| x | (byte(length + i) as u32) << (8 * i)) as i32 as isize,
        };
        length += [0, 1, 4][mode];
        address = register(base | base_bit).wrapping_add_signed(displacement);
    }
    let tiles = &mut state.tiles;
    match (opcode, prefix, is_register) {
        // LDTILECFG
        (0x49, 0, false) if reg == 0 => {
            let (found, expected) = (address as *const u8, (&raw const CONFIG).cast::<u8>());
            // SAFETY: the instruction reads as many bytes there.
            if !(0..size_of::<Config>()).all(|i| unsafe { *found.add(i) == *expected.add(i) }) {
                return false;
            }
            *tiles = Emulated::zeros();
            state.is_configured = true;
        }
        // TILERELEASE
        (0x49, 0, true) if mod_rm == 0xc0 => state.is_configured = false,
        _ if !state.is_configured => return false,
        // TILEZERO
        (0x49, 3, true) if rm == 0 => tiles.zero_tile(reg),
        // TILELOADD
        // SAFETY: the instruction reads there.
        (0x4b, 3, false) if rm == 4 => unsafe { tiles.load_tile(reg, address as *const u32, stride) },
        // TILESTORED
        // SAFETY: the instruction writes there.
        (0x4b, 2, false) if rm == 4 => unsafe { tiles.store_tile(reg, address as *mut f32, stride) },
        // TDPBF16PS
        (0x5c, 2, true) => tiles.multiply_tiles(reg, rm, !vex >> 3 & 7),
        _ => return false,
    }
    state.num += 1;
    registers[libc::REG_RIP as usize] += length as i64;
    true
}
