package org.lora4j.serve.http;

import java.nio.file.Path;
import java.time.Duration;
import java.util.List;
import org.jspecify.annotations.Nullable;

/**
 * How a server listens and what it accepts. Start from {@link #of}.
 *
 * @param host the address to listen at; the loopback one unless others may reach the server
 * @param port the port, or 0 for any that is free
 * @param modelName what requests call the base
 * @param apiKey what requests must bring as bearer token, or null for none
 * @param roots folders adapters may come from
 * @param chatFormat how messages become a prompt
 * @param maxBodyBytes the largest body of a request
 * @param maxChoices most continuations a request may ask for, prompts times {@code n}
 * @param drainLimit how long requests may go on after the server was told to stop
 */
public record ServerOptions(
        String host,
        int port,
        String modelName,
        @Nullable String apiKey,
        List<Path> roots,
        ChatFormat chatFormat,
        int maxBodyBytes,
        int maxChoices,
        Duration drainLimit) {
    public ServerOptions {
        require(!modelName.isBlank(), "modelName", modelName, "not blank");
        require(port >= 0 && port <= 65535, "port", port, "0 to 65535");
        require(maxBodyBytes >= 1024, "maxBodyBytes", maxBodyBytes, "at least 1024");
        require(maxChoices >= 1, "maxChoices", maxChoices, "at least 1");
        require(apiKey == null || !apiKey.isBlank(), "apiKey", "blank", "a text to compare with, or absent");
        roots = List.copyOf(roots);
    }

    /** The loopback address and port 8080, no key, bodies of up to 1 MiB, 64 continuations, half a minute to finish. */
    public static ServerOptions of(String modelName, ChatFormat chatFormat) {
        return new ServerOptions(
                "127.0.0.1", 8080, modelName, null, List.of(), chatFormat, 1 << 20, 64, Duration.ofSeconds(30));
    }

    public ServerOptions withAddress(String newHost, int newPort) {
        return new ServerOptions(
                newHost, newPort, modelName, apiKey, roots, chatFormat, maxBodyBytes, maxChoices, drainLimit);
    }

    public ServerOptions withApiKey(@Nullable String value) {
        return new ServerOptions(host, port, modelName, value, roots, chatFormat, maxBodyBytes, maxChoices, drainLimit);
    }

    public ServerOptions withRoots(List<Path> value) {
        return new ServerOptions(
                host, port, modelName, apiKey, value, chatFormat, maxBodyBytes, maxChoices, drainLimit);
    }

    public ServerOptions withLimits(int bodyBytes, int choices) {
        return new ServerOptions(host, port, modelName, apiKey, roots, chatFormat, bodyBytes, choices, drainLimit);
    }

    public ServerOptions withDrainLimit(Duration value) {
        return new ServerOptions(host, port, modelName, apiKey, roots, chatFormat, maxBodyBytes, maxChoices, value);
    }

    private static void require(boolean ok, String field, Object value, String rule) {
        if (!ok) {
            throw new IllegalArgumentException(field + " is " + value + " but must be " + rule);
        }
    }
}
