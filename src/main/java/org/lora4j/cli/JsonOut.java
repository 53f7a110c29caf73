package org.lora4j.cli;

import java.io.PrintWriter;
import tools.jackson.databind.json.JsonMapper;

/** Results for machines. */
final class JsonOut {
    private JsonOut() {}

    static void print(PrintWriter out, Object value) {
        out.println(new JsonMapper().writerWithDefaultPrettyPrinter().writeValueAsString(value));
        out.flush();
    }
}
