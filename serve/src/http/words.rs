//! `/tokenize`, `/detokenize` and `/tokenizer_info`, as vLLM has them.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use super::error::ApiError;
use super::fields::Fields;
use super::{Body, Served, bytes};

/// `{"prompt": TEXT, "add_special_tokens": true}`
pub async fn tokenize(State(served): State<Arc<Served>>, body: Body) -> Result<Json<Value>, ApiError> {
    let mut fields = Fields::of(&bytes(body)?)?;
    fields.take::<String>("model", "a text")?;
    let prompt: Option<String> = fields.take("prompt", "a text")?;
    let prompt = prompt.ok_or_else(|| ApiError::field("prompt", "`prompt` is missing: a text"))?;
    let special = fields.take("add_special_tokens", "true or false")?.unwrap_or(true);
    fields.only("return_token_strs", &[json!(false)])?;
    fields.end()?;
    let tokens = served.engine.model.tokens.encode(&prompt, special);
    let tokens = tokens.map_err(|error| ApiError::field("prompt", format!("{error:#}")))?;
    let room = served.engine.room.context;
    Ok(Json(json!({ "count": tokens.len(), "max_model_len": room, "tokens": tokens, "token_strs": null })))
}

/// `{"tokens": [1, 2]}`
pub async fn detokenize(State(served): State<Arc<Served>>, body: Body) -> Result<Json<Value>, ApiError> {
    let mut fields = Fields::of(&bytes(body)?)?;
    fields.take::<String>("model", "a text")?;
    let tokens: Option<Vec<u32>> = fields.take("tokens", "a list of token ids")?;
    let tokens = tokens.ok_or_else(|| ApiError::field("tokens", "`tokens` is missing: a list of token ids"))?;
    fields.end()?;
    let model = &served.engine.model;
    let num = model.num_tokens();
    if let Some(token) = tokens.iter().find(|token| **token as usize >= num) {
        let message = format!("there is no token {token}; tokens of this model are below {num}");
        return Err(ApiError::field("tokens", message));
    }
    let text = model.tokens.decode(&tokens, true);
    Ok(Json(json!({ "prompt": text.map_err(|error| ApiError::field("tokens", format!("{error:#}")))? })))
}

/// `tokenizer_config.json`, with the chat template.
pub async fn tokenizer_info(State(served): State<Arc<Served>>) -> Json<Value> {
    let model = &served.engine.model;
    let mut info = match &model.tokenizer_config {
        Value::Null => toroid_hf::bytes_tokenizer::tokenizer_config(model.config()),
        config => config.clone(),
    };
    if let Some(chat) = &model.chat {
        info["chat_template"] = json!(chat.text);
    }
    Json(info)
}
