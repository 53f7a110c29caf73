package org.lora4j;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.IOException;
import java.net.URI;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Stream;
import javax.tools.Diagnostic;
import javax.tools.DiagnosticCollector;
import javax.tools.JavaFileObject;
import javax.tools.SimpleJavaFileObject;
import javax.tools.ToolProvider;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;

/** Holds the documents to the code: examples compile, links lead somewhere. */
class DocsTest {
    private static final Pattern JAVA = Pattern.compile("```java\n(.*?)```", Pattern.DOTALL);
    private static final Pattern CLASS = Pattern.compile("public (?:final )?class (\\w+)");
    private static final Pattern LINK = Pattern.compile("\\]\\(([^)#:]+)\\)");

    @TempDir
    Path folder;

    static Stream<Path> documents() throws IOException {
        List<Path> documents = new ArrayList<>(List.of(Path.of("README.md"), Path.of("CONTRIBUTING.md")));
        try (Stream<Path> docs = Files.list(Path.of("docs"))) {
            docs.filter(file -> file.toString().endsWith(".md")).sorted().forEach(documents::add);
        }
        return documents.stream();
    }

    @ParameterizedTest
    @MethodSource("documents")
    void examplesCompile(Path document) throws IOException {
        List<JavaFileObject> sources = examples(Files.readString(document));
        if (sources.isEmpty()) {
            return;
        }
        var problems = new DiagnosticCollector<JavaFileObject>();
        var compiler = ToolProvider.getSystemJavaCompiler();
        List<String> options = List.of("-cp", System.getProperty("java.class.path"), "-d", folder.toString());
        boolean compiled =
                compiler.getTask(null, null, problems, options, null, sources).call();
        List<Diagnostic<? extends JavaFileObject>> errors = problems.getDiagnostics().stream()
                .filter(problem -> problem.getKind() == Diagnostic.Kind.ERROR)
                .toList();
        assertThat(errors).as("the examples of " + document).isEmpty();
        assertThat(compiled).isTrue();
    }

    @Test
    void theReadmeHasAnExampleOfTwentyLines() throws IOException {
        Matcher block = JAVA.matcher(Files.readString(Path.of("README.md")));
        assertThat(block.find()).isTrue();
        long statements = block.group(1)
                .lines()
                .filter(line -> !line.isBlank() && !line.startsWith("import "))
                .count();
        assertThat(statements).isBetween(8L, 20L);
    }

    @ParameterizedTest
    @MethodSource("documents")
    void linksLeadToFiles(Path document) throws IOException {
        Matcher links = LINK.matcher(Files.readString(document));
        while (links.find()) {
            Path target = document.resolveSibling(links.group(1));
            assertThat(target).as("a link of " + document).exists();
        }
    }

    private static List<JavaFileObject> examples(String text) {
        List<JavaFileObject> sources = new ArrayList<>();
        Matcher blocks = JAVA.matcher(text);
        while (blocks.find()) {
            Matcher name = CLASS.matcher(blocks.group(1));
            assertThat(name.find()).as("a public class in: " + blocks.group(1)).isTrue();
            sources.add(new Source(name.group(1), blocks.group(1)));
        }
        return sources;
    }

    private static final class Source extends SimpleJavaFileObject {
        private final String code;

        Source(String name, String code) {
            super(URI.create("string:///" + name + ".java"), Kind.SOURCE);
            this.code = code;
        }

        @Override
        public CharSequence getCharContent(boolean ignoreEncodingErrors) {
            return code;
        }
    }
}
