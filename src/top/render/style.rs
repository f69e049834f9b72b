//! Colours, where the terminal's user wants any (<https://no-color.org>): they only repeat what symbols and words say.

use ratatui_core::style::{Color, Modifier, Style};
use ratatui_core::text::{Line, Span};

use crate::top::model::PlaceState;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Palette {
    has_colours: bool,
}

impl Palette {
    pub fn new(has_colours: bool) -> Palette {
        Palette { has_colours }
    }

    fn colour(self, colour: Color) -> Style {
        if self.has_colours { Style::new().fg(colour) } else { Style::new() }
    }

    pub fn plain(self) -> Style {
        Style::new()
    }

    pub fn strong(self) -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }

    /// The selected place.
    pub fn selected(self, style: Style) -> Style {
        style.add_modifier(Modifier::REVERSED | Modifier::BOLD)
    }

    /// Something that somebody should see.
    pub fn alert(self) -> Style {
        self.colour(Color::Red).add_modifier(Modifier::BOLD)
    }

    pub fn loss(self) -> Style {
        self.colour(Color::Cyan)
    }

    pub fn place(self, state: PlaceState) -> Style {
        self.colour(match state {
            PlaceState::Computing => Color::Green,
            PlaceState::Waiting => Color::Gray,
            PlaceState::Healing => Color::Yellow,
            PlaceState::Dead => Color::Red,
            PlaceState::Straggling => Color::Magenta,
        })
    }

    /// A heading with a rule behind it.
    pub fn heading(self, text: &str, width: u16) -> Line<'static> {
        let text = super::cut(text, width.saturating_sub(4));
        let rest = (width as usize).saturating_sub(text.chars().count() + 4);
        Line::from(vec![
            Span::raw("── "),
            Span::styled(text, self.strong()),
            Span::raw(format!(" {}", "─".repeat(rest))),
        ])
    }
}
