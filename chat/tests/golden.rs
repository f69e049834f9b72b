//! Templates as families of models publish them, against what transformers and jinja2 make of them (`golden.json`, written by
//! `scripts/record_chat_templates.py`), and templates that are wrong, endless or hostile.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::value::RawValue;
use toroid_chat::{Chat, ChatError, Limits, Rendered, Template, Time};

/// `chats.json`; what a template is given stays as it is written there, keys in their order.
#[derive(Deserialize)]
struct Given {
    now: [u16; 6],
    tools: Box<RawValue>,
    chats: BTreeMap<String, GivenChat>,
    variables: BTreeMap<String, Box<RawValue>>,
}

#[derive(Deserialize)]
struct GivenChat {
    messages: Box<RawValue>,
    #[serde(default)]
    tools: bool,
}

#[derive(Deserialize)]
struct Golden {
    text: String,
    trained: Vec<[usize; 2]>,
}

fn read(name: &str) -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(name);
    std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()))
}

#[test]
fn texts_are_those_of_jinja2_byte_for_byte() {
    let given: Given = serde_json::from_str(&read("chats.json")).unwrap();
    let golden: BTreeMap<String, Option<Golden>> = serde_json::from_str(&read("golden.json")).unwrap();
    let [year, month, day, hour, minute, second] = given.now;
    let part = |n: u16| u8::try_from(n).unwrap();
    let now =
        Time { year, month: part(month), day: part(day), hour: part(hour), minute: part(minute), second: part(second) };
    let variables: Vec<(&str, &str)> = given.variables.iter().map(|(k, v)| (k.as_str(), v.get())).collect();
    let (mut num_marked, mut differing) = (0, Vec::new());
    for (row, expected) in &golden {
        let parts: Vec<&str> = row.split('/').collect();
        let [template, name, prompt] = parts[..] else { panic!("{row}") };
        let template = Template::parse(&read(&format!("templates/{template}.jinja")), Limits::default()).unwrap();
        let chat = &given.chats[name];
        let found = template.render(&Chat {
            messages: chat.messages.get(),
            tools: chat.tools.then(|| given.tools.get()),
            add_generation_prompt: prompt == "prompt",
            variables: &variables,
            now,
            ..Chat::default()
        });
        match (found, expected) {
            (Ok(Rendered { text, trained }), Some(expected)) => {
                let trained: Vec<[usize; 2]> =
                    trained.iter().filter(|r| !r.is_empty()).map(|r| [r.start, r.end]).collect();
                num_marked += trained.len();
                if text != expected.text {
                    let at = text.bytes().zip(expected.text.bytes()).take_while(|(a, b)| a == b).count();
                    let from = (0..=at.saturating_sub(40)).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
                    differing.push(format!(
                        "{row}, byte {at}:\n  ours   {:?}\n  jinja2 {:?}",
                        &text[from..],
                        &expected.text[from..]
                    ));
                } else if trained != expected.trained {
                    differing.push(format!("{row}: trained {trained:?}, by transformers {:?}", expected.trained));
                }
            }
            (Err(_), None) => {}
            (found, expected) => {
                differing.push(format!("{row}: {found:?}, jinja2 {:?}", expected.as_ref().map(|e| &e.text)))
            }
        }
    }
    assert!(differing.is_empty(), "{} of {} differ:\n{}", differing.len(), golden.len(), differing.join("\n"));
    assert!(golden.len() >= 80 && num_marked >= 10, "{} rows, {num_marked} of them marked", golden.len());
}

fn render(source: &str, limits: Limits) -> Result<Rendered, ChatError> {
    let messages = r#"[{"role": "user", "content": "hi"}]"#;
    Template::parse(source, limits)?.render(&Chat { messages, ..Chat::default() })
}

#[track_caller]
fn check_error(source: &str, expected: &str) {
    let error = render(source, Limits::default()).unwrap_err().to_string();
    assert!(error.contains(expected), "`{expected}` is not in `{error}`");
}

#[test]
fn errors_name_the_line_and_what_is_wrong() {
    check_error("a\nb\n{% if %}", "the chat template is wrong in line 3: ");
    check_error("a\n{% for m in messages %}", "the chat template is wrong in line 2: ");
    check_error("a\n{% generation %}", "the chat template is wrong in line 2: ");
    check_error("{% unheard of %}", "the chat template is wrong in line 1: ");
    check_error(
        "\n\n{{ raise_exception('roles must alternate') }}",
        "refuses these messages in line 3: roles must alternate",
    );
    check_error("\n{{ messages.a.b }}", "fails with these messages in line 2: ");
    check_error("{{ messages[0].content.unheard() }}", "fails with these messages in line 1: ");
    check_error("{{ strftime_now('%Q') }}", "does not know `%Q`");
    check_error("{{ missing | tojson }}", "tojson takes no undefined");
    let template = Template::parse("", Limits::default()).unwrap();
    let error = template.render(&Chat { messages: "[", ..Chat::default() }).unwrap_err();
    assert!(error.to_string().starts_with("messages is not JSON: "), "{error}");
    let error = Template::parse(&"a".repeat(2 << 20), Limits::default()).unwrap_err();
    assert_eq!(error.to_string(), "the chat template has 2097152 bytes, at most 1048576 are taken");
}

#[test]
fn a_hostile_template_ends() {
    let limits = Limits { fuel: 100_000, text_bytes: 1000, depth: 50 };
    let fails = |source: &str| match render(source, limits) {
        Err(ChatError::Failed { what, .. } | ChatError::Syntax { what, .. }) => what,
        other => panic!("{source}: {other:?}"),
    };
    let nested = "{% for a in range(9999) %}".repeat(4) + &"{% endfor %}".repeat(4);
    fails(&nested);
    fails("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}");
    fails("{{ 'x' * 1000000000000 }}");
    fails("{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}");
    fails("{{ range(1000000000000) | list }}");
    fails(&"{{ 'xxxxxxxxxx' }}".repeat(101));
    fails(&("{{ ".to_string() + &"[".repeat(10_000)));
    fails("{% include '/etc/passwd' %}");
    let deep = format!("[{}{}]", "[".repeat(10_000), "]".repeat(10_000));
    let template = Template::parse("{{ messages | tojson }}", limits).unwrap();
    assert!(matches!(template.render(&Chat { messages: &deep, ..Chat::default() }), Err(ChatError::Json { .. })));
}

/// Marks are characters that nobody else has.
#[test]
fn text_cannot_forge_what_is_trained_on() {
    let source = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}";
    let template = Template::parse(source, Limits::default()).unwrap();
    let content = "a\u{f0000}b\u{f0001}c\u{f0002}";
    let messages = format!("[{{\"content\": \"{content}\"}}, {{\"content\": \"\"}}]");
    let found = template.render(&Chat { messages: &messages, ..Chat::default() }).unwrap();
    assert_eq!((found.text.as_str(), found.trained), (content, vec![0..content.len(), content.len()..content.len()]));
    let cut = "{% filter replace('a', 'b') | first %}{% generation %}a{% endgeneration %}{% endfilter %}";
    assert!(matches!(render(cut, Limits::default()), Err(ChatError::Failed { .. })));
    let nested = "{% generation %}a{% generation %}b{% endgeneration %}{% endgeneration %}";
    let error = render(nested, Limits::default()).unwrap_err().to_string();
    assert!(error.contains("a generation block is within another"), "{error}");
}
