//! `strftime_now`: a moment, and its text by a format of C's `strftime`, in English.

/// A moment on the calendar that the user's clock shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Time {
    pub year: u16,
    /// 1 to 12.
    pub month: u8,
    /// 1 to 31.
    pub day: u8,
    pub hour: u8,
    pub minute: u8,
    pub second: u8,
}

impl Default for Time {
    fn default() -> Time {
        Time { year: 1970, month: 1, day: 1, hour: 0, minute: 0, second: 0 }
    }
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

impl Time {
    /// The text of this moment; an error names a directive that is not known.
    pub fn strftime(self, format: &str) -> Result<String, String> {
        let mut out = String::new();
        let mut rest = format.chars();
        while let Some(c) = rest.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            let mut directive = rest.next();
            // glibc's: without zeros in front.
            let is_short = directive == Some('-');
            if is_short {
                directive = rest.next();
            }
            let text = directive.and_then(|d| self.directive(d)).ok_or_else(|| {
                let name = directive.map_or_else(String::new, String::from);
                format!("strftime_now does not know `%{name}` of the format `{format}`")
            })?;
            let shortened = text.trim_start_matches(['0', ' ']);
            match is_short {
                true if shortened.is_empty() => out.push('0'),
                true => out.push_str(shortened),
                false => out.push_str(&text),
            }
        }
        Ok(out)
    }

    fn directive(self, directive: char) -> Option<String> {
        let Time { year, month, day, hour, minute, second } = self;
        let month_name = MONTHS.get(usize::from(month).checked_sub(1)?)?;
        let weekday = DAYS[usize::from(self.weekday())];
        let twelve = if hour % 12 == 0 { 12 } else { hour % 12 };
        Some(match directive {
            'Y' => year.to_string(),
            'y' => format!("{:02}", year % 100),
            'm' => format!("{month:02}"),
            'B' => (*month_name).into(),
            'b' | 'h' => month_name[..3].into(),
            'd' => format!("{day:02}"),
            'e' => format!("{day:2}"),
            'A' => weekday.into(),
            'a' => weekday[..3].into(),
            'w' => self.weekday().to_string(),
            'u' => (if self.weekday() == 0 { 7 } else { self.weekday() }).to_string(),
            'j' => format!("{:03}", self.day_of_year()),
            'H' => format!("{hour:02}"),
            'I' => format!("{twelve:02}"),
            'M' => format!("{minute:02}"),
            'S' => format!("{second:02}"),
            'p' => if hour < 12 { "AM" } else { "PM" }.into(),
            'F' => format!("{year}-{month:02}-{day:02}"),
            'T' => format!("{hour:02}:{minute:02}:{second:02}"),
            'R' => format!("{hour:02}:{minute:02}"),
            'D' => format!("{month:02}/{day:02}/{:02}", year % 100),
            'n' => "\n".into(),
            't' => "\t".into(),
            '%' => "%".into(),
            _ => return None,
        })
    }

    fn is_leap(self) -> bool {
        self.year.is_multiple_of(4) && (!self.year.is_multiple_of(100) || self.year.is_multiple_of(400))
    }

    /// 1 to 366.
    fn day_of_year(self) -> u16 {
        const BEFORE: [u16; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
        let before = BEFORE[usize::from(self.month.clamp(1, 12) - 1)];
        before + u16::from(self.day) + u16::from(self.month > 2 && self.is_leap())
    }

    /// 0 is Sunday.
    fn weekday(self) -> u8 {
        let years = u32::from(self.year) + 399;
        // Days since a Sunday, by the rule of leap years; 400 years are whole weeks.
        let days = years * 365 + years / 4 - years / 100 + years / 400 + u32::from(self.day_of_year());
        (days % 7) as u8
    }
}
