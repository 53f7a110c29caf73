package org.lora4j.format;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.Set;
import java.util.TreeSet;
import java.util.regex.MatchResult;
import java.util.regex.Pattern;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.lora4j.format.SafetensorsException.Defect;

/** The table of attacks in docs/adapter-format.md names every defect, and tests that exist. */
class AttackTableTest {
    @Test
    void everyDefectHasARowAndEveryRowItsTests() throws IOException {
        Set<String> methods = Stream.of(SafetensorsDefectTest.class, ShardedCheckpointTest.class)
                .flatMap(test -> Arrays.stream(test.getDeclaredMethods()))
                .map(method -> method.getName())
                .collect(Collectors.toSet());
        Set<String> defects = new TreeSet<>();
        Pattern row = Pattern.compile("(?m)^\\| [^|]+ \\| `([A-Z0-9_]+)` \\| (.+) \\|$");
        for (MatchResult match : row.matcher(Files.readString(Path.of("docs/adapter-format.md")))
                .results()
                .toList()) {
            defects.add(match.group(1));
            assertThat(methods).contains(match.group(2).replace("`", "").split(", "));
        }
        assertThat(defects)
                .isEqualTo(
                        Arrays.stream(Defect.values()).map(Enum::name).collect(Collectors.toCollection(TreeSet::new)));
    }
}
