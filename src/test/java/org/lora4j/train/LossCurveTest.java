package org.lora4j.train;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatIllegalArgumentException;

import java.io.IOException;
import java.io.StringReader;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import javax.xml.parsers.DocumentBuilderFactory;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.xml.sax.InputSource;

class LossCurveTest {
    @TempDir
    Path folder;

    @Test
    void writesAnObjectALine() throws IOException {
        LossCurve curve = curve("a", 2);
        Path file = folder.resolve("curve.jsonl");
        curve.writeJsonl(file);
        assertThat(Files.readAllLines(file))
                .containsExactly(
                        "{\"step\": 1, \"loss\": 3.0, \"lr\": 0.5}",
                        "{\"step\": 2, \"loss\": 2.0, \"lr\": 0.25}",
                        "{\"step\": 2, \"held_out_loss\": 2.5}");
    }

    @Test
    void plotsEveryCurveAsWellFormedSvgWithoutOutsideParts() throws Exception {
        String svg = LossPlot.svg(List.of(curve("definitions & <more>", 60), curve("verses", 7)));
        var document =
                DocumentBuilderFactory.newInstance().newDocumentBuilder().parse(new InputSource(new StringReader(svg)));
        assertThat(document.getElementsByTagName("polyline").getLength())
                .as("a faint, a firm and a dashed line for each curve")
                .isEqualTo(6);
        assertThat(document.getElementsByTagName("circle").getLength()).isEqualTo(2);
        assertThat(document.getDocumentElement().getTextContent()).contains("definitions & <more>", "verses", "step");
        assertThat(svg).doesNotContain("http", "<script", "url(");
        String points = document.getElementsByTagName("polyline")
                .item(0)
                .getAttributes()
                .getNamedItem("points")
                .getNodeValue();
        assertThat(points.trim().split(" ")).hasSize(60).allMatch(p -> inside(p));
    }

    @Test
    void plotsACurveOfOnePoint() {
        assertThat(LossPlot.page("One", List.of(curve("a", 1))))
                .startsWith("<!doctype html>")
                .doesNotContain("NaN");
    }

    @Test
    void refusesToPlotNothing() {
        assertThatIllegalArgumentException().isThrownBy(() -> LossPlot.svg(List.of(new LossCurve("a"))));
    }

    private static boolean inside(String point) {
        String[] xy = point.split(",");
        double x = Double.parseDouble(xy[0]);
        double y = Double.parseDouble(xy[1]);
        return x >= 0 && x <= 800 && y >= 0 && y <= 390;
    }

    private static LossCurve curve(String name, int steps) {
        LossCurve curve = new LossCurve(name);
        for (int step = 1; step <= steps; step++) {
            curve.onStep(step, steps, 1 + (double) steps / step, 0.5 / step);
        }
        curve.onEvaluation(steps, 2.5);
        return curve;
    }
}
