"""What a client is told when something is wrong, in the form of OpenAI's API."""

from __future__ import annotations

from starlette.responses import JSONResponse

from rvqlm.errors import UserError

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """An answer other than 200.

    :param param: field of the request that is at fault.
    :param code: a word for programs.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = headers or {}

    @classmethod
    def of(cls, error: Exception) -> ApiError:
        """Of what went wrong: a user's mistake is a 400, anything else a 500 without details."""
        if isinstance(error, cls):
            return error
        if isinstance(error, UserError):
            return cls(400, str(error))
        return cls(500, "the server failed; its log says why", code="internal_error")

    def to_dict(self) -> dict:
        kind = _TYPES.get(self.status)
        if kind is None:
            kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"message": self.message, "type": kind, "param": self.param, "code": self.code}

    def response(self) -> JSONResponse:
        return JSONResponse({"error": self.to_dict()}, self.status, self.headers)
