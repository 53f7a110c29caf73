package org.lora4j.serve.http;

import io.javalin.http.Context;
import java.io.IOException;
import java.io.InputStream;
import java.net.URLEncoder;
import java.nio.charset.StandardCharsets;
import java.util.Locale;
import tools.jackson.databind.json.JsonMapper;

/** Bodies of requests and answers. */
final class Json {
    private final JsonMapper mapper = JsonMapper.builder().build();
    private final int maxBytes;

    /** @param maxBytes the largest body */
    Json(int maxBytes) {
        this.maxBytes = maxBytes;
    }

    String write(Object value) {
        return mapper.writeValueAsString(value);
    }

    void reply(Context context, int status, Object value) {
        context.status(status).contentType("application/json").result(write(value));
    }

    /** The object in a request's body. Other types than JSON are refused, so that no page of another site can send one. */
    Fields body(Context context) throws IOException {
        String type = context.contentType();
        if (type == null || !type.toLowerCase(Locale.ROOT).startsWith("application/json")) {
            throw new ApiException(
                    415,
                    "invalid_request_error",
                    null,
                    "unsupported_media_type",
                    "the Content-Type is " + type + ": send JSON as application/json");
        }
        if (context.req().getContentLengthLong() > maxBytes) {
            throw tooLarge();
        }
        byte[] body;
        try (InputStream in = context.req().getInputStream()) {
            body = in.readNBytes(maxBytes + 1);
        }
        if (body.length > maxBytes) {
            throw tooLarge();
        }
        return Fields.parse(body);
    }

    private ApiException tooLarge() {
        return new ApiException(
                413,
                "invalid_request_error",
                null,
                "request_too_large",
                "the body has more than " + maxBytes + " bytes: send less");
    }

    /** A text as a header can hold it. */
    static String ascii(String text) {
        return URLEncoder.encode(text, StandardCharsets.UTF_8)
                .replace("%2F", "/")
                .replace("%2B", "+");
    }
}
