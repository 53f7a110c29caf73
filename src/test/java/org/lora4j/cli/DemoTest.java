package org.lora4j.cli;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.PrintWriter;
import java.io.StringWriter;
import java.nio.file.Path;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.lora4j.model.causal.CausalLM;
import tools.jackson.databind.JsonNode;
import tools.jackson.databind.json.JsonMapper;

/** The demo itself, with few steps, on the real base. */
class DemoTest {
    @TempDir
    Path folder;

    @Test
    void runsFromStartToEnd() throws Exception {
        var printed = new StringWriter();
        var out = new PrintWriter(printed, true);
        int code = Main.run(out, out, "demo", "--steps", "12", "--rank", "5", "--out", folder.toString());
        assertThat(code).as(printed.toString()).isZero();
        JsonNode summary =
                JsonMapper.shared().readTree(folder.resolve("summary.json").toFile());
        assertThat(summary.get("passed").booleanValue()).isTrue();
        assertThat(summary.get("checks"))
                .hasSize(14)
                .allMatch(check -> check.get("passed").booleanValue());
        assertThat(loss(summary, "definitions", "definitions")).isLessThan(loss(summary, "base", "definitions") - 0.5);
        assertThat(loss(summary, "verses", "verses")).isLessThan(loss(summary, "base", "verses") - 0.2);
        assertThat(folder.resolve("report.html")).content().contains("<svg", "unmerging restores every bit");
        assertThat(folder.resolve("definitions.loss.jsonl")).content().contains("held_out_loss");
        for (String name : new String[] {"definitions", "verses"}) {
            assertThat(folder.resolve("adapters/" + name + "/adapter_config.json"))
                    .content()
                    .contains("\"r\": 5");
            assertThat(folder.resolve("adapters/" + name + "/adapter_model.safetensors"))
                    .isNotEmptyFile();
        }
        try (CausalLM merged = CausalLM.load(folder.resolve("merged"))) {
            assertThat(merged.config().layers()).isPositive();
        }
    }

    @Test
    void aFailedCheckFailsTheSummary() {
        var summary = new Summary();
        summary.checks.add(new Summary.Check("first", true, "fine"));
        assertThat(summary.passed()).isTrue();
        summary.checks.add(new Summary.Check("second", false, "1 is not 2"));
        assertThat(summary.passed()).isFalse();
        assertThat(summary.checkTable().get(1)).startsWith("FAILED").contains("second", "1 is not 2");
    }

    private static double loss(JsonNode summary, String model, String task) {
        return summary.get("losses").get(model).get(task).doubleValue();
    }
}
