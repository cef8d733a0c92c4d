"""What providers say about the end of an answer, in OpenAI's words.

A word that is not in the table means that the answer was broken off. Half an answer must not be learned from.
"""

from __future__ import annotations

from typing import Any

BROKEN_OFF = "error"
"""The provider stopped in the middle, or named a reason that is not known. OpenRouter uses the same word."""
FILTERED = "content_filter"
CUT = "length"

_OPENAI = "https://platform.openai.com/docs/api-reference/chat/object"
_RESPONSES = "https://platform.openai.com/docs/api-reference/responses/object"
_ANTHROPIC = "https://docs.anthropic.com/en/api/handling-stop-reasons"
_GEMINI = "https://ai.google.dev/api/generate-content#FinishReason"
_MISTRAL = "https://docs.mistral.ai/api/#tag/chat"
_DEEPSEEK = "https://api-docs.deepseek.com/api/create-chat-completion"
_ZAI = "https://docs.z.ai/api-reference/llm/chat-completion"
_COHERE = "https://docs.cohere.com/reference/chat"
_BEDROCK = "https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_Converse.html"
_TITAN = "https://docs.aws.amazon.com/bedrock/latest/userguide/model-parameters-titan-text.html"
_TGI = "https://huggingface.co/docs/text-generation-inference/reference/api_reference"
_VLLM = "https://docs.vllm.ai/en/latest/api/vllm/v1/engine/"
_SGLANG = "https://docs.sglang.ai/basic_usage/native_api.html"
_LLAMA_CPP = "https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md"
_OLLAMA = "https://github.com/ollama/ollama/blob/main/docs/api.md"
_OPENROUTER = "https://openrouter.ai/docs/api-reference/overview"
_WATSONX = "https://cloud.ibm.com/apidocs/watsonx-ai"
_XAI = "https://docs.x.ai/docs/api-reference"
_DASHSCOPE = "https://help.aliyun.com/zh/model-studio/qwen-api-reference"
_TOGETHER = "https://docs.together.ai/reference/chat-completions-1"
_AI21 = "https://docs.ai21.com/reference/jamba-1-6-api-ref"
_TENCENT = "https://cloud.tencent.com/document/product/1729/105701"

_TABLE: tuple[tuple[str, str, str], ...] = (
    # (OpenAI's word, the provider's words in lower case, where the provider lists them)
    ("stop", "stop", _OPENAI),
    ("stop", "completed", _RESPONSES),
    ("stop", "end_turn stop_sequence", _ANTHROPIC),
    ("stop", "complete", _COHERE),
    ("stop", "finish finished", _TITAN),
    ("stop", "eos_token", _TGI),
    ("stop", "eos", _TOGETHER),
    ("stop", "word", _LLAMA_CPP),
    ("stop", "endoftext", _AI21),
    ("stop", "reason_stop", _XAI),
    ("tool_calls", "tool_calls function_call", _OPENAI),
    ("tool_calls", "tool_use", _ANTHROPIC),
    ("tool_calls", "tool_call", _COHERE),
    ("tool_calls", "reason_tool_calls", _XAI),
    (CUT, "length", _OPENAI),
    (CUT, "max_output_tokens incomplete", _RESPONSES),
    (CUT, "max_tokens model_context_window_exceeded compaction", _ANTHROPIC),
    (CUT, "max_tokens", _GEMINI),
    (CUT, "model_length", _MISTRAL),
    (CUT, "error_limit", _COHERE),
    (CUT, "limit", _LLAMA_CPP),
    (CUT, "repetition", _VLLM),
    (CUT, "token_limit time_limit", _WATSONX),
    (CUT, "reason_max_len reason_max_context reason_time_limit", _XAI),
    (FILTERED, "content_filter", _OPENAI),
    (FILTERED, "safety recitation language blocklist prohibited_content spii model_armor", _GEMINI),
    (FILTERED, "image_safety image_prohibited_content image_recitation", _GEMINI),
    (FILTERED, "guardrail_intervened content_filtered", _BEDROCK),
    (FILTERED, "sensitive", _ZAI),
    (FILTERED, "sensitive", _TENCENT),
    (FILTERED, "error_toxic", _COHERE),
    ("refusal", "refusal", _ANTHROPIC),
    (BROKEN_OFF, "error", _OPENROUTER),
    (BROKEN_OFF, "failed cancelled in_progress queued", _RESPONSES),
    (BROKEN_OFF, "pause_turn", _ANTHROPIC),
    (BROKEN_OFF, "finish_reason_unspecified other malformed_function_call malformed_response", _GEMINI),
    (BROKEN_OFF, "unexpected_tool_call too_many_tool_calls missing_thought_signature no_image image_other", _GEMINI),
    (BROKEN_OFF, "error", _MISTRAL),
    (BROKEN_OFF, "insufficient_system_resource", _DEEPSEEK),
    (BROKEN_OFF, "network_error", _ZAI),
    (BROKEN_OFF, "error user_cancel timeout", _COHERE),
    (BROKEN_OFF, "malformed_model_output malformed_tool_use", _BEDROCK),
    (BROKEN_OFF, "abort error", _VLLM),
    (BROKEN_OFF, "abort", _SGLANG),
    (BROKEN_OFF, "load unload", _OLLAMA),
    (BROKEN_OFF, "not_finished cancelled error", _WATSONX),
    (BROKEN_OFF, "reason_invalid", _XAI),
    (BROKEN_OFF, "null", _DASHSCOPE),
)
FINISH_REASONS: dict[str, str] = {word: meaning for meaning, words, _ in _TABLE for word in words.split()}
_FIELDS = ("finish_reason", "finishReason", "stop_reason", "stopReason", "done_reason", "finish_details")
_TRANSIENT = {"network_error", "insufficient_system_resource", "abort", "error", "timeout", "failed"}


def read_finish_reason(value: Any) -> str | None:
    """The provider's own word, in lower case: of "FinishReason.STOP", of `{"type": "stop"}` (SGLang), or of a list.

    None if there is none.
    """
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, dict):
        value = value.get("type") or value.get("reason")
    if not isinstance(value, str) or not value.strip():
        return None
    return value.strip().rpartition(".")[2].casefold().replace("-", "_").replace(" ", "_")


def normalize_finish_reason(value: Any) -> str:
    """OpenAI's word for a provider's finish reason; `BROKEN_OFF` if there is none, or if it is not known."""
    if type(value) is str and value in FINISH_REASONS:  # nearly always
        return FINISH_REASONS[value]
    word = read_finish_reason(value)
    return FINISH_REASONS.get(word, BROKEN_OFF) if word is not None else BROKEN_OFF


def get_finish_reason(choice: dict[str, Any]) -> Any:
    """The finish reason of a choice, under any of its names; None if there is none."""
    return next((choice[name] for name in _FIELDS if read_finish_reason(choice.get(name)) is not None), None)


def find_finish_reason(body: Any) -> str | None:
    """The finish reason in a body as a provider sends it, before a library translates it; None if none is found."""
    while isinstance(body, dict):
        if word := read_finish_reason(get_finish_reason(body)):
            return word
        body = next((body[name] for name in ("choices", "candidates", "results", "generations") if name in body), None)
        body = body[0] if isinstance(body, list) and body else None
    return None


def is_transient(value: Any) -> bool:
    """Whether the provider broke off for a reason of its own, so that another try may succeed at once."""
    return read_finish_reason(value) in _TRANSIENT
