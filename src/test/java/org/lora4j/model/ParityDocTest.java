package org.lora4j.model;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.IOException;
import java.util.ArrayList;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.junit.jupiter.api.Test;

/** The list behind docs/parity.md is whole, and its page says what it should. */
class ParityDocTest {
    /** Cases that are bases or files, and not features of PEFT. */
    private static final List<String> NO_FEATURES = List.of("models/", "other_methods/");

    @Test
    void everyGoldenCaseShowsAFeatureAndEveryPatternMeansACase() throws IOException {
        List<String> cases = ParityDoc.goldenCases();
        assertThat(cases).hasSizeGreaterThanOrEqualTo(250);
        Set<String> left = new LinkedHashSet<>(cases);
        left.removeIf(name -> NO_FEATURES.stream().anyMatch(name::startsWith));
        List<String> without = new ArrayList<>();
        for (ParityDoc.Feature feature : ParityDoc.features()) {
            left.removeAll(ParityDoc.matching(feature, cases));
            for (String pattern : feature.cases()) {
                ParityDoc.Feature one = new ParityDoc.Feature("", "", "", List.of(pattern), "");
                assertThat(ParityDoc.matching(one, cases)).as(pattern).isNotEmpty();
            }
            if (feature.cases().isEmpty() && feature.note().isEmpty()) {
                without.add(feature.peft());
            }
        }
        assertThat(left)
                .as("golden cases of no feature: add them to features.json")
                .isEmpty();
        assertThat(without)
                .as("features without a case need a note that says what shows them")
                .isEmpty();
    }

    @Test
    void thePageNamesTheLargestDifferenceOfAFeature() {
        ParityDoc.Feature feature = new ParityDoc.Feature("Layers", "Linear", "`LoraLinear`", List.of("a/*"), "");
        String text = ParityDoc.text(
                List.of(feature),
                Map.of("a/x", 1e-6, "a/y", 3.5e-6, "a/y_bf16", 0.01, "b/z", 1.0),
                List.of("a/x", "a/y", "a/y_bf16", "b/z"));
        assertThat(text)
                .contains("4 golden cases, 4 of them with a recorded difference")
                .contains("## Layers")
                .contains("| Linear | `LoraLinear` | `a/x` and 2 more | 3.5e-06 | 1.0e-02 |  |");
    }
}
