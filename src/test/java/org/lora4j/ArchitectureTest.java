package org.lora4j;

import static com.tngtech.archunit.lang.syntax.ArchRuleDefinition.methods;
import static com.tngtech.archunit.lang.syntax.ArchRuleDefinition.noClasses;
import static com.tngtech.archunit.library.Architectures.layeredArchitecture;
import static com.tngtech.archunit.library.dependencies.SlicesRuleDefinition.slices;
import static org.assertj.core.api.Assertions.assertThat;

import com.tngtech.archunit.core.domain.JavaClasses;
import com.tngtech.archunit.core.domain.JavaModifier;
import com.tngtech.archunit.core.importer.ClassFileImporter;
import com.tngtech.archunit.core.importer.ImportOption;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;

/** Holds the shape of the code: which package may use which, where native methods live, how long a file may be. */
class ArchitectureTest {
    private static final JavaClasses CLASSES = new ClassFileImporter()
            .withImportOption(ImportOption.Predefined.DO_NOT_INCLUDE_TESTS)
            .importPackages("org.lora4j");

    /** Each package and what it may use. The command line may use all. */
    private static final Map<String, List<String>> ARROWS = new TreeMap<>(Map.ofEntries(
            Map.entry("config", List.of()),
            Map.entry("format", List.of("config")),
            Map.entry("ops", List.of("format", "ops.binding")),
            Map.entry("ops.binding", List.of()),
            Map.entry("layer", List.of("config", "ops", "format")),
            Map.entry("combine", List.of("layer", "config", "ops", "format")),
            Map.entry("merge", List.of("config", "format", "ops")),
            Map.entry("model", List.of("config", "layer", "ops", "format", "combine")),
            Map.entry("model.causal", List.of("format", "ops", "model")),
            Map.entry("train", List.of("model", "model.causal", "layer", "config", "ops")),
            Map.entry("serve", List.of("model", "model.causal", "layer", "config", "format", "ops")),
            Map.entry("serve.http", List.of("serve", "model.causal", "format"))));

    @Test
    void packagesUseOnlyWhatTheFlowAllows() {
        var layers = layeredArchitecture().consideringOnlyDependenciesInLayers();
        for (String name : ARROWS.keySet()) {
            layers = layers.optionalLayer(name).definedBy("org.lora4j." + name);
        }
        layers = layers.optionalLayer("cli").definedBy("org.lora4j.cli..");
        for (Map.Entry<String, List<String>> arrows : ARROWS.entrySet()) {
            var layer = layers.whereLayer(arrows.getKey());
            layers = arrows.getValue().isEmpty()
                    ? layer.mayNotAccessAnyLayer()
                    : layer.mayOnlyAccessLayers(arrows.getValue().toArray(new String[0]));
        }
        layers.whereLayer("cli").mayNotBeAccessedByAnyLayer().check(CLASSES);
    }

    @Test
    void everyPackageHasItsArrows() {
        List<String> known = new ArrayList<>(ARROWS.keySet());
        known.add("cli");
        assertThat(CLASSES.stream()
                        .map(c -> c.getPackageName().replaceFirst("^org\\.lora4j\\.?", ""))
                        .distinct()
                        .toList())
                .as("packages of org.lora4j: a new one needs its arrows here")
                .isSubsetOf(known);
    }

    @Test
    void packagesHaveNoCycles() {
        slices().matching("org.lora4j.(**)").should().beFreeOfCycles().check(CLASSES);
    }

    @Test
    void configurationAndFilesKnowNoTorch() {
        noClasses()
                .that()
                .resideInAnyPackage("org.lora4j.config..", "org.lora4j.format..")
                .should()
                .dependOnClassesThat()
                .resideInAPackage("org.bytedeco..")
                .check(CLASSES);
    }

    @Test
    void nativeMethodsLiveInTheBinding() {
        methods()
                .that()
                .areDeclaredInClassesThat()
                .resideOutsideOfPackage("org.lora4j.ops.binding")
                .should()
                .notHaveModifier(JavaModifier.NATIVE)
                .check(CLASSES);
    }

    @Test
    void filesStaySmall() throws IOException {
        List<String> tooLong = new ArrayList<>();
        for (Path file : sources()) {
            String name = file.toString();
            long limit = name.endsWith(".java") ? 500 : name.matches(".*\\.(h|hpp|cpp|cu|cuh)") ? 400 : Long.MAX_VALUE;
            long lines = limit == Long.MAX_VALUE ? 0 : Files.readAllLines(file).size();
            if (lines > limit) {
                tooLong.add(name + " has " + lines + " lines, the limit is " + limit);
            }
        }
        assertThat(tooLong).isEmpty();
    }

    @Test
    void everyPackageIsNullMarked() throws IOException {
        List<Path> unmarked = new ArrayList<>();
        for (Path file : sources()) {
            if (file.startsWith(Path.of("src/main/java")) && file.toString().endsWith(".java")) {
                Path info = file.resolveSibling("package-info.java");
                if (!Files.exists(info) || !Files.readString(info).contains("@NullMarked")) {
                    unmarked.add(file);
                }
            }
        }
        assertThat(unmarked)
                .as("files whose package-info.java lacks @NullMarked")
                .isEmpty();
    }

    private static List<Path> sources() throws IOException {
        try (Stream<Path> files = Files.walk(Path.of("src"))) {
            return files.filter(Files::isRegularFile).toList();
        }
    }
}
