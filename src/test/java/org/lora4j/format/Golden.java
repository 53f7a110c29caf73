package org.lora4j.format;

import java.net.URISyntaxException;
import java.net.URL;
import java.nio.file.Path;
import java.util.Objects;

/** Finds the golden files. */
final class Golden {
    private Golden() {}

    static Path path(String name) {
        URL url = Objects.requireNonNull(Golden.class.getResource("/golden/" + name), "no golden file " + name);
        try {
            return Path.of(url.toURI());
        } catch (URISyntaxException e) {
            throw new AssertionError(e);
        }
    }
}
