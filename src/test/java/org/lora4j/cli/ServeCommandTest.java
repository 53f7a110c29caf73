package org.lora4j.cli;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.BufferedReader;
import java.io.PrintWriter;
import java.io.StringWriter;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.TimeUnit;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.lora4j.model.causal.ServedModels;

class ServeCommandTest {
    @TempDir
    Path folder;

    private static String run(int expected, String... arguments) {
        StringWriter err = new StringWriter();
        int code = Main.run(new PrintWriter(new StringWriter()), new PrintWriter(err), arguments);
        assertThat(code).as(err.toString()).isEqualTo(expected);
        return err.toString();
    }

    @ParameterizedTest
    @CsvSource({
        "2, --model, nowhere, --model: nowhere is no folder",
        "2, --adapters, nowhere, --adapters: nowhere is no folder",
        "2, --lora, a=nowhere, --lora a: nowhere is no folder",
        "2, --pool, much, 'much' is no size",
        "2, --max-tokens, 100000, the model has 256 positions",
        "1, --port, 99999, port is 99999 but must be 0 to 65535",
        "2, --chat-format, verse, 'verse'"
    })
    void wrongOptionsAreNamed(int code, String option, String value, String message) {
        assertThat(run(code, "serve", option, value)).contains(message);
    }

    @Test
    void servesUntilItIsToldToStop() throws Exception {
        ServedModels.adapter(folder.resolve("mine"), ServedModels.DEMO, 2, 4, 1, 0.2, "q_proj");
        List<String> command = new ArrayList<>(List.of(
                Path.of(System.getProperty("java.home"), "bin", "java").toString(),
                "-Dorg.bytedeco.javacpp.maxPhysicalBytes=0",
                "-Dorg.bytedeco.javacpp.maxBytes=0",
                "-cp",
                System.getProperty("java.class.path"),
                "org.lora4j.cli.Main",
                "serve",
                "--port",
                "0",
                "--adapters",
                folder.toString(),
                "--lora",
                "other=" + folder.resolve("mine")));
        Process process = new ProcessBuilder(command)
                .redirectError(folder.resolve("errors").toFile())
                .start();
        try (BufferedReader lines = process.inputReader()) {
            Matcher address = Pattern.compile("http://127\\.0\\.0\\.1:(\\d+)").matcher(lines.readLine());
            assertThat(address.find()).isTrue();
            HttpClient client = HttpClient.newHttpClient();
            for (String model : List.of("base", "mine", "other")) {
                String body = "{\"model\": \"" + model + "\", \"prompt\": \"Define: bread\\n\", \"max_tokens\": 4}";
                HttpRequest request = HttpRequest.newBuilder(URI.create(address.group() + "/v1/completions"))
                        .header("Content-Type", "application/json")
                        .POST(HttpRequest.BodyPublishers.ofString(body))
                        .build();
                HttpResponse<String> answer = client.send(request, HttpResponse.BodyHandlers.ofString());
                assertThat(answer.statusCode()).as(answer.body()).isEqualTo(200);
            }
            // Unlike Process.destroy this leaves the output open.
            process.toHandle().destroy();
            assertThat(process.waitFor(60, TimeUnit.SECONDS)).isTrue();
            assertThat(lines.lines().toList()).endsWith("stopped");
        } finally {
            process.destroyForcibly();
        }
    }
}
