package org.lora4j.serve.http;

import java.util.LinkedHashMap;
import java.util.Map;
import org.jspecify.annotations.Nullable;

/** A refusal of a request, in the shape of OpenAI's errors. */
final class ApiException extends RuntimeException {
    private static final long serialVersionUID = 1;

    private final int status;
    private final String type;
    private final @Nullable String param;
    private final @Nullable String code;

    ApiException(int status, String type, @Nullable String param, @Nullable String code, String message) {
        super(message);
        this.status = status;
        this.type = type;
        this.param = param;
        this.code = code;
    }

    /** A request that cannot be right, whoever sends it. */
    static ApiException invalid(@Nullable String param, String message) {
        return new ApiException(400, "invalid_request_error", param, null, message);
    }

    static ApiException unsupported(String param, String message) {
        return new ApiException(400, "invalid_request_error", param, "unsupported_parameter", message);
    }

    static ApiException noModel(String name) {
        return new ApiException(
                404,
                "invalid_request_error",
                "model",
                "model_not_found",
                "there is no model or adapter \"" + name + "\": see /v1/models for those there are, or load it");
    }

    int status() {
        return status;
    }

    /** The body of the answer. */
    Map<String, @Nullable Object> body() {
        Map<String, @Nullable Object> error = new LinkedHashMap<>();
        error.put("message", getMessage());
        error.put("type", type);
        error.put("param", param);
        error.put("code", code);
        Map<String, @Nullable Object> body = new LinkedHashMap<>();
        body.put("error", error);
        return body;
    }
}
