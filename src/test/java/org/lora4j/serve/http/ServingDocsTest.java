package org.lora4j.serve.http;

import static org.assertj.core.api.Assertions.assertThat;

import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.TimeUnit;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** Runs the commands with curl that docs/serving.md shows, as they are but for the port. */
class ServingDocsTest {
    private static final Pattern BLOCK = Pattern.compile("```sh\n(.*?)```", Pattern.DOTALL);
    private static final String ADDRESS = "http://127.0.0.1:8080";

    @TempDir
    Path folder;

    @Test
    void theCommandsOfTheDocumentWork() throws Exception {
        List<String> blocks = new ArrayList<>();
        Matcher matcher = BLOCK.matcher(Files.readString(Path.of("docs/serving.md")));
        while (matcher.find()) {
            if (matcher.group(1).contains(ADDRESS)) {
                blocks.add(matcher.group(1));
            }
        }
        assertThat(blocks).hasSizeGreaterThanOrEqualTo(4);
        // Statuses of errors are to count as failures.
        Files.writeString(folder.resolve(".curlrc"), "fail-with-body\nsilent\nshow-error\nmax-time = 60\n");
        try (TestServer server = new TestServer(folder)) {
            server.adapter("definitions", 5, 4);
            server.adapter("verses", 6, 2);
            for (String block : blocks) {
                Path output = folder.resolve("output");
                ProcessBuilder shell = new ProcessBuilder(
                        "bash", "-euc", block.replace(ADDRESS, "http://127.0.0.1:" + server.server.port()));
                shell.environment().put("CURL_HOME", folder.toString());
                shell.redirectErrorStream(true).redirectOutput(output.toFile());
                Process process = shell.start();
                assertThat(process.waitFor(120, TimeUnit.SECONDS)).isTrue();
                assertThat(process.exitValue())
                        .as("%s%n%s", block, Files.readString(output))
                        .isZero();
                assertThat(Files.readString(output)).isNotBlank();
            }
        }
    }
}
