"""The three wire shapes of the fake teacher: how a request is read, an answer and an error are written."""

import json
from dataclasses import dataclass
from typing import Any, Protocol

from schemas.money import Usage


@dataclass(frozen=True, slots=True)
class Asked:
    """What the server needs to know of a request."""

    model: str
    last: str
    input_tokens: int
    max_tokens: int
    schema: dict[str, Any] | None
    tool: str | None = None  # by which the answer is to come

    def checked(self) -> "Asked":
        """Itself. `ValueError` for what no provider takes."""
        if not isinstance(self.max_tokens, int) or isinstance(self.max_tokens, bool) or self.max_tokens < 1:
            raise ValueError(f"max_tokens must be a whole number above 0, not {self.max_tokens!r}")
        return self


class Wire(Protocol):
    """One dialect."""

    anthropic: bool

    def read(self, body: dict[str, Any]) -> Asked: ...

    def written(self, asked: Asked, text: str, finish: str, usage: Usage) -> dict[str, Any]: ...

    def refused(self, asked: Asked, usage: Usage) -> dict[str, Any]: ...


def text_of(content: Any) -> str:
    """A message's content: text, or a list of parts."""
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return str(content)


def tokens_of(*texts: str) -> int:
    """About four characters a token, as both providers estimate before they count."""
    return sum(len(t) for t in texts) // 4 + 1


class ChatWire:
    """OpenAI Chat Completions."""

    anthropic = False

    def read(self, body: dict[str, Any]) -> Asked:
        texts = [text_of(m["content"]) for m in body["messages"]]
        form = body.get("response_format") or {}
        limit = body.get("max_completion_tokens") or body.get("max_tokens") or 4096
        return Asked(body["model"], texts[-1], tokens_of(*texts), limit, form.get("json_schema", {}).get("schema"))

    def written(self, asked: Asked, text: str, finish: str, usage: Usage) -> dict[str, Any]:
        return self._completion(asked, {"role": "assistant", "content": text, "refusal": None}, finish, usage)

    def refused(self, asked: Asked, usage: Usage) -> dict[str, Any]:
        message = {"role": "assistant", "content": None, "refusal": "I cannot help with that."}
        return self._completion(asked, message, "stop", usage)

    @staticmethod
    def _completion(asked: Asked, message: dict[str, Any], finish: str, usage: Usage) -> dict[str, Any]:
        return {
            "id": "chatcmpl-fake", "object": "chat.completion", "model": asked.model,
            "choices": [{"index": 0, "message": message, "finish_reason": finish}],
            "usage": {
                "prompt_tokens": usage.input_tokens, "completion_tokens": usage.output_tokens,
                "total_tokens": usage.input_tokens + usage.output_tokens,
            },
        }  # fmt: skip


class ResponsesWire:
    """OpenAI Responses."""

    anthropic = False

    def read(self, body: dict[str, Any]) -> Asked:
        given = body["input"]
        texts = [given] if isinstance(given, str) else [text_of(m["content"]) for m in given]
        form = (body.get("text") or {}).get("format") or {}
        count = tokens_of(*texts, body.get("instructions") or "")
        return Asked(body["model"], texts[-1], count, body.get("max_output_tokens") or 4096, form.get("schema"))

    def written(self, asked: Asked, text: str, finish: str, usage: Usage) -> dict[str, Any]:
        return self._response(asked, {"type": "output_text", "text": text, "annotations": []}, finish, usage)

    def refused(self, asked: Asked, usage: Usage) -> dict[str, Any]:
        return self._response(asked, {"type": "refusal", "refusal": "I cannot help with that."}, "stop", usage)

    @staticmethod
    def _response(asked: Asked, part: dict[str, Any], finish: str, usage: Usage) -> dict[str, Any]:
        cut = finish == "length"
        return {
            "id": "resp-fake", "object": "response", "model": asked.model,
            "status": "incomplete" if cut else "completed",
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "output": [{"type": "message", "role": "assistant", "status": "completed", "content": [part]}],
            "usage": {
                "input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens,
                "total_tokens": usage.input_tokens + usage.output_tokens,
            },
        }  # fmt: skip


class MessagesWire:
    """Anthropic Messages."""

    anthropic = True

    def read(self, body: dict[str, Any]) -> Asked:
        texts = [text_of(m["content"]) for m in body["messages"]]
        form = (body.get("output_config") or {}).get("format") or {}
        tools = body.get("tools") or []
        schema = tools[0]["input_schema"] if tools else form.get("schema")
        tool = tools[0]["name"] if tools else None
        count = tokens_of(*texts, text_of(body.get("system") or ""))
        return Asked(body["model"], texts[-1], count, body["max_tokens"], schema, tool)

    def written(self, asked: Asked, text: str, finish: str, usage: Usage) -> dict[str, Any]:
        if asked.tool is not None and finish != "length":
            given = {"type": "tool_use", "id": "toolu-fake", "name": asked.tool, "input": json.loads(text)}
            return self._message(asked, [given], "tool_use", usage)
        reason = "max_tokens" if finish == "length" else "end_turn"
        return self._message(asked, [{"type": "text", "text": text}], reason, usage)

    def refused(self, asked: Asked, usage: Usage) -> dict[str, Any]:
        return self._message(asked, [], "refusal", usage)

    @staticmethod
    def _message(asked: Asked, content: list[dict[str, Any]], reason: str, usage: Usage) -> dict[str, Any]:
        return {
            "id": "msg-fake", "type": "message", "role": "assistant", "model": asked.model, "content": content,
            "stop_reason": reason, "stop_sequence": None,
            "usage": {"input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens},
        }  # fmt: skip


WIRES: dict[str, Wire] = {
    "/v1/chat/completions": ChatWire(),
    "/v1/responses": ResponsesWire(),
    "/v1/messages": MessagesWire(),
}
# Error types of the Messages API by status; the OpenAI ones are told apart by `code`.
ANTHROPIC_TYPES = {
    400: "invalid_request_error", 401: "authentication_error", 402: "billing_error", 403: "permission_error",
    404: "not_found_error", 413: "request_too_large", 429: "rate_limit_error", 500: "api_error",
    503: "api_error", 504: "timeout_error", 529: "overloaded_error",
}  # fmt: skip


def error_body(anthropic: bool, status: int, code: str, message: str) -> bytes:
    """An error as the dialect writes it."""
    if anthropic:
        kind = ANTHROPIC_TYPES.get(status, "api_error")
        details = {"error_code": code} if code else None
        return json.dumps({"type": "error", "error": {"type": kind, "message": message, "details": details}}).encode()
    kind = "insufficient_quota" if code == "insufficient_quota" else "invalid_request_error"
    return json.dumps({"error": {"code": code, "type": kind, "message": message, "param": None}}).encode()
