package org.lora4j.cli;

import java.io.IOException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.EnumSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Callable;
import org.jspecify.annotations.Nullable;
import org.lora4j.combine.CombinationType;
import org.lora4j.combine.CombineOptions;
import org.lora4j.combine.FolderCombination;
import org.lora4j.combine.MajoritySign;
import org.lora4j.combine.MergeSpace;
import org.lora4j.config.PeftCompat;
import picocli.CommandLine.ArgGroup;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.ParameterException;
import picocli.CommandLine.Parameters;
import picocli.CommandLine.Spec;

/** {@code lora4j combine}. */
@Command(
        name = "combine",
        description = {
            "Combines adapters into a new one, without a model.",
            "",
            "What is combined are the updates the adapters really make, scaled once; svd, linear, cat and exact never"
                    + " form the large matrices. --peft repeats PEFT's arithmetic instead.",
            ""
        },
        mixinStandardHelpOptions = true,
        sortOptions = false)
final class CombineCommand implements Callable<Integer> {
    @Spec
    private CommandSpec spec;

    @Parameters(paramLabel = "ADAPTER", arity = "1..*", description = "Folders of adapters, as PEFT writes them")
    private List<Path> adapters = new ArrayList<>();

    @Option(
            names = "--weights",
            paramLabel = "W",
            split = ",",
            description = "A weight for each, such as 0.7,-0.3. Default: 1 for each")
    private @Nullable List<Double> weights;

    @Option(
            names = "--type",
            paramLabel = "TYPE",
            defaultValue = "linear",
            description =
                    "svd, linear, cat, ties, ties_svd, dare_linear, dare_ties, dare_linear_svd, dare_ties_svd,"
                            + " magnitude_prune, magnitude_prune_svd, exact, della, breadcrumbs, sce, slerp. Default: ${DEFAULT-VALUE}")
    private String type;

    @Option(names = "--density", paramLabel = "D", description = "Part of the elements to keep, for types that prune")
    private @Nullable Double density;

    @ArgGroup
    private @Nullable RankOptions rank;

    @Option(
            names = "--majority-sign",
            paramLabel = "HOW",
            defaultValue = "total",
            description = "How signs are elected: total or frequency. Default: ${DEFAULT-VALUE}")
    private MajoritySign majoritySign;

    @Option(names = "--clamp", paramLabel = "Q", description = "Limit the factors to this quantile of their elements")
    private @Nullable Double clamp;

    @Option(names = "--epsilon", paramLabel = "E", description = "For della: how the chance to stay varies in a row")
    private @Nullable Double epsilon;

    @Option(names = "--gamma", paramLabel = "G", description = "For breadcrumbs: part of the largest to drop")
    private @Nullable Double gamma;

    @Option(
            names = "--space",
            paramLabel = "SPACE",
            defaultValue = "delta",
            description = "Where elements are pruned and elected: delta, or core for core space merging")
    private MergeSpace space;

    @Option(
            names = "--layer-weights",
            paramLabel = "REGEX=W",
            description = "Other weights at layers whose path ends with REGEX, such as 'layers\\.[0-3]\\..*=1,0.2'")
    private List<String> layerWeights = new ArrayList<>();

    @Option(names = "--different-targets", description = "What an adapter lacks is no update, not an error")
    private boolean differentTargets;

    @Option(names = "--seed", paramLabel = "S", defaultValue = "0", description = "Seed of types that drop at random")
    private long seed;

    @Option(names = "--base", paramLabel = "DIR", description = "Base model; needed with DoRA and modules_to_save")
    private @Nullable Path base;

    @Option(names = "--peft", description = "Repeat PEFT's arithmetic, defects included")
    private boolean peft;

    @Mixin
    private ReportOptions report = new ReportOptions();

    @Override
    public Integer call() throws IOException {
        List<Double> given = weights == null ? adapters.stream().map(a -> 1.0).toList() : weights;
        report.report(
                FolderCombination.combine(
                        adapters,
                        given,
                        options(),
                        base,
                        report.out(),
                        ReportOptions.listener(spec.commandLine().getErr(), "combine")),
                spec.commandLine().getOut());
        return 0;
    }

    private CombineOptions options() {
        CombineOptions.Builder builder = CombineOptions.builder(CombinationType.of(type))
                .majoritySign(majoritySign)
                .space(space)
                .seed(seed)
                .differentTargets(differentTargets);
        if (density != null) {
            builder.density(density);
        }
        if (clamp != null) {
            builder.clamp(clamp);
        }
        if (epsilon != null) {
            builder.epsilon(epsilon);
        }
        if (gamma != null) {
            builder.gamma(gamma);
        }
        if (rank != null) {
            builder.rank(rank.rule());
        }
        layers().forEach(builder::layerWeights);
        if (peft) {
            builder.compat(EnumSet.of(
                    PeftCompat.COMBINES_FACTORS,
                    PeftCompat.ELECTION_IGNORES_WEIGHTS,
                    PeftCompat.COMBINATION_KEEPS_RSLORA,
                    PeftCompat.COMBINATION_DROPS_PARTS));
        }
        return builder.build();
    }

    private Map<String, List<Double>> layers() {
        Map<String, List<Double>> layers = new LinkedHashMap<>();
        for (String each : layerWeights) {
            int at = each.lastIndexOf('=');
            try {
                List<Double> numbers = new ArrayList<>();
                for (String number : each.substring(at + 1).split(",", -1)) {
                    numbers.add(Double.valueOf(number.strip()));
                }
                layers.put(each.substring(0, at), numbers);
            } catch (NumberFormatException | StringIndexOutOfBoundsException e) {
                throw new ParameterException(
                        spec.commandLine(),
                        "--layer-weights " + each + ": give a regular expression, = and a number for each adapter",
                        e);
            }
        }
        return layers;
    }
}
