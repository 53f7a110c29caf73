package org.lora4j.bench;

import java.io.IOException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.WebSocket;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Base64;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionStage;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import tools.jackson.databind.JsonNode;
import tools.jackson.databind.json.JsonMapper;

/**
 * Uses the page of a running server in a headless Chromium, as a person would: looks at the adapters, chooses two, lets both
 * continue a prompt, and takes a picture. Run by {@code scripts/page-check}.
 */
public final class PageCheck implements WebSocket.Listener {
    private static final JsonMapper JSON = JsonMapper.builder().build();

    private final Map<Integer, CompletableFuture<JsonNode>> answers = new ConcurrentHashMap<>();
    private final AtomicInteger ids = new AtomicInteger();
    private final StringBuilder text = new StringBuilder();
    private final List<String> complaints = new java.util.concurrent.CopyOnWriteArrayList<>();
    private WebSocket socket;

    public static void main(String[] arguments) throws Exception {
        if (arguments.length != 4) {
            throw new IllegalArgumentException("usage: PageCheck URL LEFT RIGHT PICTURE.png");
        }
        Path profile = Files.createTempDirectory("lora4j-page");
        Process browser = new ProcessBuilder(
                        "chromium",
                        "--headless=new",
                        "--no-sandbox",
                        "--disable-gpu",
                        "--window-size=1100,1000",
                        "--remote-debugging-port=0",
                        "--user-data-dir=" + profile,
                        arguments[0])
                .redirectErrorStream(true)
                .redirectOutput(profile.resolve("log").toFile())
                .start();
        try {
            new PageCheck().run(profile, arguments);
        } finally {
            browser.destroy();
            browser.waitFor(10, TimeUnit.SECONDS);
        }
    }

    private void run(Path profile, String[] arguments) throws Exception {
        Path portFile = profile.resolve("DevToolsActivePort");
        for (int i = 0; i < 300 && !Files.exists(portFile); i++) {
            TimeUnit.MILLISECONDS.sleep(100);
        }
        TimeUnit.MILLISECONDS.sleep(300);
        String port = Files.readAllLines(portFile).get(0);
        HttpClient client = HttpClient.newHttpClient();
        String pages = client.send(
                        java.net.http.HttpRequest.newBuilder(URI.create("http://127.0.0.1:" + port + "/json/list"))
                                .build(),
                        java.net.http.HttpResponse.BodyHandlers.ofString())
                .body();
        String address = JSON.readTree(pages)
                .valueStream()
                .filter(page -> page.get("type").asString().equals("page"))
                .map(page -> page.get("webSocketDebuggerUrl").asString())
                .findFirst()
                .orElseThrow();
        socket = client.newWebSocketBuilder()
                .buildAsync(URI.create(address), this)
                .get(10, TimeUnit.SECONDS);
        send("Runtime.enable", Map.of());
        String left = arguments[1];
        String right = arguments[2];
        await("[...document.querySelectorAll('#adapters tr')].some(row => row.innerText.includes('" + right + "'))");
        evaluate("document.getElementById('left').value = '" + left + "'");
        evaluate("document.getElementById('right').value = '" + right + "'");
        evaluate("document.getElementById('tokens').value = 24");
        evaluate("document.getElementById('go').click()");
        await("['left', 'right'].every(side => /tokens in/.test(document.getElementById(side + 'note').textContent))");
        TimeUnit.MILLISECONDS.sleep(2500);
        String leftText =
                evaluate("document.getElementById('lefttext').textContent").asString();
        String rightText =
                evaluate("document.getElementById('righttext').textContent").asString();
        System.out.println(left + ": " + leftText.strip());
        System.out.println(right + ": " + rightText.strip());
        int served = evaluate("[...document.querySelectorAll('#adapters tr')].filter(row => row.cells[1].innerText === "
                        + "'ready' && +row.cells[3].innerText > 0).length")
                .asInt();
        System.out.println("adapters the table shows as used: " + served);
        String problem =
                evaluate("document.getElementById('problem').textContent").asString();
        byte[] picture = Base64.getDecoder()
                .decode(send("Page.captureScreenshot", Map.of("format", "png"))
                        .get("data")
                        .asString());
        Files.write(Path.of(arguments[3]), picture);
        socket.abort();
        if (leftText.isBlank() || rightText.isBlank() || leftText.equals(rightText) || served < 1) {
            throw new IllegalStateException("the page did not show two different answers");
        }
        if (!problem.isEmpty() || !complaints.isEmpty()) {
            throw new IllegalStateException("the page complains: " + problem + " " + complaints);
        }
        System.out.println("page ok, picture in " + arguments[3]);
    }

    private JsonNode send(String method, Map<String, ?> parameters) throws Exception {
        int id = ids.incrementAndGet();
        CompletableFuture<JsonNode> answer = new CompletableFuture<>();
        answers.put(id, answer);
        socket.sendText(JSON.writeValueAsString(Map.of("id", id, "method", method, "params", parameters)), true)
                .get(10, TimeUnit.SECONDS);
        return answer.get(20, TimeUnit.SECONDS);
    }

    private JsonNode evaluate(String expression) throws Exception {
        JsonNode answer = send("Runtime.evaluate", Map.of("expression", expression, "returnByValue", true));
        if (answer.has("exceptionDetails")) {
            throw new IllegalStateException(expression + ": " + answer.get("exceptionDetails"));
        }
        return answer.at("/result/value");
    }

    private void await(String condition) throws Exception {
        for (int i = 0; i < 300; i++) {
            if (evaluate(condition).asBoolean(false)) {
                return;
            }
            TimeUnit.MILLISECONDS.sleep(100);
        }
        throw new IOException("the page never came to: " + condition);
    }

    @Override
    public CompletionStage<?> onText(WebSocket from, CharSequence data, boolean last) {
        text.append(data);
        if (last) {
            JsonNode message = JSON.readTree(text.toString());
            text.setLength(0);
            if (message.has("id")) {
                answers.remove(message.get("id").asInt()).complete(message.path("result"));
            } else if (message.path("method").asString("").equals("Runtime.exceptionThrown")
                    || (message.path("method").asString("").equals("Runtime.consoleAPICalled")
                            && message.at("/params/type").asString("").equals("error"))) {
                complaints.add(message.toString());
            }
        }
        from.request(1);
        return null;
    }
}
