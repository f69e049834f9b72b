//! The terminal: cells to escape sequences, keys to [`Key`]s, and as it was before, however this ends.

use std::io::{self, Stdout, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result};
use crossterm::cursor::{Hide, MoveTo, Show};
use crossterm::event::{Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use crossterm::style::{Attribute, Color as Colour, Print, SetAttribute, SetForegroundColor};
use crossterm::terminal::{self, Clear, ClearType as Cleared, EnterAlternateScreen, LeaveAlternateScreen};
use crossterm::{execute, queue};
use ratatui_core::backend::{Backend, ClearType, WindowSize};
use ratatui_core::buffer::Cell;
use ratatui_core::layout::{Position, Size};
use ratatui_core::style::{Color, Modifier};

use super::update::Key;

/// The terminal is ours: a panic on any thread gives it back before its words are printed.
static IS_OURS: AtomicBool = AtomicBool::new(false);

/// The screen, as long as it is not dropped.
pub struct Screen(());

impl Screen {
    /// Takes the whole screen and every key.
    pub fn take() -> Result<Screen> {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            give_back();
            before(panic);
        }));
        terminal::enable_raw_mode().context("read single keys from the terminal")?;
        IS_OURS.store(true, Ordering::SeqCst);
        let screen = Screen(());
        execute!(io::stdout(), EnterAlternateScreen, Hide).context("take the terminal's screen")?;
        Ok(screen)
    }
}

impl Screen {
    /// Not after a panic, which gave the terminal back.
    pub fn is_ours(&self) -> bool {
        IS_OURS.load(Ordering::SeqCst)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        give_back();
    }
}

fn give_back() {
    if IS_OURS.swap(false, Ordering::SeqCst) {
        // A terminal that is gone needs nothing.
        let _ = execute!(io::stdout(), SetAttribute(Attribute::Reset), Show, LeaveAlternateScreen);
        let _ = terminal::disable_raw_mode();
    }
}

/// What is drawn on.
pub struct Output(Stdout);

impl Output {
    pub fn new() -> Output {
        Output(io::stdout())
    }
}

impl Backend for Output {
    type Error = io::Error;

    fn draw<'a, I>(&mut self, content: I) -> io::Result<()>
    where
        I: Iterator<Item = (u16, u16, &'a Cell)>,
    {
        let mut next: Option<(u16, u16)> = None;
        let mut style = (Color::Reset, Modifier::empty());
        queue!(self.0, SetAttribute(Attribute::Reset))?;
        for (x, y, cell) in content {
            if next != Some((x, y)) {
                queue!(self.0, MoveTo(x, y))?;
            }
            next = Some((x + 1, y));
            if style != (cell.fg, cell.modifier) {
                style = (cell.fg, cell.modifier);
                queue!(self.0, SetAttribute(Attribute::Reset))?;
                if cell.modifier.contains(Modifier::BOLD) {
                    queue!(self.0, SetAttribute(Attribute::Bold))?;
                }
                if cell.modifier.contains(Modifier::REVERSED) {
                    queue!(self.0, SetAttribute(Attribute::Reverse))?;
                }
                if cell.fg != Color::Reset {
                    queue!(self.0, SetForegroundColor(colour(cell.fg)))?;
                }
            }
            queue!(self.0, Print(cell.symbol()))?;
        }
        queue!(self.0, SetAttribute(Attribute::Reset))
    }

    fn hide_cursor(&mut self) -> io::Result<()> {
        execute!(self.0, Hide)
    }

    fn show_cursor(&mut self) -> io::Result<()> {
        execute!(self.0, Show)
    }

    /// Nothing here depends on where the cursor is, and asking the terminal would wait for its answer.
    fn get_cursor_position(&mut self) -> io::Result<Position> {
        Ok(Position::ORIGIN)
    }

    fn set_cursor_position<P: Into<Position>>(&mut self, position: P) -> io::Result<()> {
        let Position { x, y } = position.into();
        execute!(self.0, MoveTo(x, y))
    }

    fn clear(&mut self) -> io::Result<()> {
        self.clear_region(ClearType::All)
    }

    fn clear_region(&mut self, region: ClearType) -> io::Result<()> {
        execute!(
            self.0,
            Clear(match region {
                ClearType::All => Cleared::All,
                ClearType::AfterCursor => Cleared::FromCursorDown,
                ClearType::BeforeCursor => Cleared::FromCursorUp,
                ClearType::CurrentLine => Cleared::CurrentLine,
                ClearType::UntilNewLine => Cleared::UntilNewLine,
            })
        )
    }

    fn size(&self) -> io::Result<Size> {
        let (width, height) = terminal::size()?;
        Ok(Size { width, height })
    }

    fn window_size(&mut self) -> io::Result<WindowSize> {
        Ok(WindowSize { columns_rows: self.size()?, pixels: Size::ZERO })
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Those that [`super::render::Palette`] uses.
fn colour(colour: Color) -> Colour {
    match colour {
        Color::Red => Colour::DarkRed,
        Color::Green => Colour::DarkGreen,
        Color::Yellow => Colour::DarkYellow,
        Color::Magenta => Colour::DarkMagenta,
        Color::Cyan => Colour::DarkCyan,
        Color::Gray => Colour::Grey,
        _ => Colour::Reset,
    }
}

/// Waits for the next key; `None`: something else happened, as another size of the window.
pub fn next_key() -> io::Result<Option<Key>> {
    match crossterm::event::read()? {
        Event::Key(event) if event.kind != KeyEventKind::Release => Ok(key(event)),
        _ => Ok(None),
    }
}

fn key(event: KeyEvent) -> Option<Key> {
    let is_ctrl = event.modifiers.contains(KeyModifiers::CONTROL);
    match event.code {
        KeyCode::Char('c') if is_ctrl => Some(Key::Interrupt),
        KeyCode::Char(_) if is_ctrl => None,
        KeyCode::Char(c) => Some(Key::Char(c)),
        KeyCode::Up => Some(Key::Up),
        KeyCode::Down => Some(Key::Down),
        KeyCode::Left => Some(Key::Left),
        KeyCode::Right => Some(Key::Right),
        KeyCode::Tab => Some(Key::Tab),
        KeyCode::BackTab => Some(Key::BackTab),
        KeyCode::Esc => Some(Key::Escape),
        _ => None,
    }
}
