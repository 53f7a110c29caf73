package org.lora4j.train;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class RunLogTest {
    @TempDir
    Path folder;

    @Test
    void theChecksumIsTfRecords() {
        // crc32c("123456789") is e3069283 (RFC 3720); masked as TFRecord does.
        assertThat(EventFile.masked("123456789".getBytes(StandardCharsets.US_ASCII), 0, 9))
                .isEqualTo(((0xe3069283 >>> 15) | (0xe3069283 << 17)) + 0xa282ead8);
    }

    @Test
    void eventsAreRecordsWithScalars() throws IOException {
        try (EventFile events = new EventFile(folder, 1000, "host")) {
            events.scalar("train/loss", 300, 2.5, 1001);
        }
        List<byte[]> records = records(folder.resolve("events.out.tfevents.1000.host"));
        assertThat(records).hasSize(2);
        assertThat(new String(records.get(0), StandardCharsets.ISO_8859_1)).contains("brain.Event:2");
        ByteBuffer event = ByteBuffer.wrap(records.get(1)).order(ByteOrder.LITTLE_ENDIAN);
        assertThat(event.get()).as("wall_time").isEqualTo((byte) 0x09);
        assertThat(event.getDouble()).isEqualTo(1001);
        assertThat(new byte[] {event.get(), event.get(), event.get()})
                .as("step 300 as a varint")
                .containsExactly(0x10, 0xac, 0x02);
        assertThat(event.get()).as("summary").isEqualTo((byte) 0x2a);
        assertThat((int) event.get()).isEqualTo(event.remaining());
        assertThat(event.get()).as("value").isEqualTo((byte) 0x0a);
        assertThat((int) event.get()).isEqualTo(event.remaining());
        assertThat(event.get()).as("tag").isEqualTo((byte) 0x0a);
        byte[] tag = new byte[event.get()];
        event.get(tag);
        assertThat(new String(tag, StandardCharsets.UTF_8)).isEqualTo("train/loss");
        assertThat(event.get()).as("simple_value").isEqualTo((byte) 0x15);
        assertThat(event.getFloat()).isEqualTo(2.5f);
        assertThat(event.hasRemaining()).isFalse();
    }

    private static List<byte[]> records(Path file) throws IOException {
        ByteBuffer in = ByteBuffer.wrap(Files.readAllBytes(file)).order(ByteOrder.LITTLE_ENDIAN);
        List<byte[]> records = new ArrayList<>();
        while (in.hasRemaining()) {
            int at = in.position();
            byte[] data = new byte[(int) in.getLong()];
            assertThat(in.getInt()).isEqualTo(EventFile.masked(in.array(), at, 8));
            in.get(data);
            assertThat(in.getInt()).isEqualTo(EventFile.masked(data, 0, data.length));
            records.add(data);
        }
        return records;
    }

    @Test
    void aResumedRunGoesOnWithTheLog() throws IOException {
        try (RunLog log = new RunLog(folder, "run")) {
            log.onStart(0, 4);
            for (int step = 1; step <= 3; step++) {
                log.onStep(step, 4, 5 - step, 0.1);
                log.onReport(new StepReport(step, 4, 5 - step, 0.1, 1, 10, 0.5));
            }
            log.onEvaluation(3, 2.25);
        }
        Files.writeString(folder.resolve("log.jsonl"), "{\"step\": 4, \"lo", java.nio.file.StandardOpenOption.APPEND);
        try (RunLog log = new RunLog(folder, "run")) {
            log.onStart(2, 4);
            log.onStep(3, 4, 1.5, 0.1);
            log.onReport(new StepReport(3, 4, 1.5, 0.1, 1, 10, 0.5));
            assertThat(log.curve().steps()).extracting(LossCurve.Point::loss).containsExactly(4.0, 3.0, 1.5);
        }
        assertThat(Files.readAllLines(folder.resolve("log.jsonl")))
                .hasSize(3)
                .last()
                .isEqualTo("{\"step\":3,\"loss\":1.5,\"lr\":0.1,\"grad_norm\":1.0,\"tokens\":10,\"seconds\":0.5}");
        assertThat(Files.readString(folder.resolve("report.html")))
                .contains("<svg")
                .contains("polyline");
    }
}
