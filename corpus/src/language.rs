//! The language that prose is in, by its letters and how often three of them follow each other (the crate whatlang: 70 languages).

use whatlang::Lang;

use crate::doc::char_boundary;

/// So much of a document is looked at: more does not make it surer.
const LOOK_BYTES: usize = 16 << 10;

/// Whether a language is one of those that are known, by its code of ISO 639-3.
pub fn is_known(code: &str) -> bool {
    Lang::from_code(code).is_some_and(|lang| lang.code() == code)
}

/// Codes of all that are known.
pub fn known() -> Vec<&'static str> {
    let mut codes: Vec<&str> = Lang::all().iter().map(Lang::code).collect();
    codes.sort_unstable();
    codes
}

/// The most likely language, and how sure that is, from 0 to 1; none where there are no letters.
pub fn guess(text: &str) -> Option<(&'static str, f64)> {
    let found = whatlang::detect(&text[..char_boundary(text, LOOK_BYTES)])?;
    Some((found.lang().code(), found.confidence()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn languages_are_told_apart_and_the_same_each_time() {
        let check = |text: &str, expected: &str| {
            let (code, confidence) = guess(text).expect("letters");
            assert!(code == expected && confidence > 0.5, "{code}, {confidence}: {text}");
            assert!((0..20).all(|_| guess(text) == Some((code, confidence))), "{text}");
        };
        check("The quick answer is that nobody knows what the weather will be like in a month.", "eng");
        check("Niemand weiß heute, wie das Wetter in einem Monat sein wird, und das ist auch gut so.", "deu");
        check("Personne ne sait aujourd'hui quel temps il fera dans un mois, et c'est très bien ainsi.", "fra");
        check(
            "Никто сегодня не знает, какая погода будет через месяц, и это очень хорошо, потому что так интереснее жить.",
            "rus",
        );
        check("誰も来月の天気がどうなるかを知りません。それでいいのです。", "jpn");
        check("没有人知道下个月的天气会怎么样，这样也很好。", "cmn");
        for text in ["", "12 345 ... !", "\u{0}\u{202e}"] {
            assert_eq!(guess(text), None, "{text}");
        }
        assert!(is_known("eng") && !is_known("en") && !is_known("ENG") && known().contains(&"deu"));
    }

    #[test]
    fn a_long_text_takes_no_longer_than_a_short_one() {
        // Cut within a character.
        let text = "ж\u{1f600}".repeat(4 << 20);
        assert_eq!(guess(&text), guess(&text[..char_boundary(&text, LOOK_BYTES)]));
    }
}
