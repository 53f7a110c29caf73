package org.lora4j.cli;

import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import java.util.OptionalLong;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import org.jspecify.annotations.Nullable;
import org.lora4j.format.DType;
import org.lora4j.merge.MergeOptions;
import org.lora4j.merge.TiedPolicy;
import org.lora4j.merge.WeightedAdapter;
import picocli.CommandLine.ITypeConverter;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.ParameterException;
import picocli.CommandLine.Parameters;
import picocli.CommandLine.TypeConversionException;

/** What {@code plan} and {@code merge} have in common. */
final class MergeArguments {
    @Parameters(
            index = "0",
            paramLabel = "CHECKPOINT",
            description = "Folder with model.safetensors or its shards and index, or one safetensors file.")
    Path checkpoint;

    @Option(
            names = {"-a", "--adapter"},
            paramLabel = "PATH[=WEIGHT]",
            converter = AdapterArgument.Converter.class,
            description = {
                "An adapter: a folder in PEFT's layout, or a file of kohya's, of diffusers' or GGUF.",
                "Name it several times to add several adapters, each with its weight."
            })
    List<AdapterArgument> adapters = new ArrayList<>();

    @Option(
            names = "--dtype",
            paramLabel = "TYPE",
            converter = TypeName.class,
            description = "Type of all floating tensors of the result: f32, bf16 or f16; otherwise each keeps its own.")
    @Nullable
    DType dtype;

    @Option(
            names = "--shard-size",
            paramLabel = "SIZE",
            converter = Size.class,
            description = "New shards of at most this size, such as 5GB; otherwise the files stay as they are.")
    long shardSize;

    @Option(
            names = "--tied",
            paramLabel = "POLICY",
            defaultValue = "refuse",
            description =
                    "Where an adapter changes one of two tied embeddings: refuse (default), untie (what the adapted"
                            + " model computes) or both (what PEFT's merge does).")
    TiedPolicy tied;

    @Option(
            names = "--stochastic",
            paramLabel = "SEED",
            description = "Round changed numbers stochastically, by this seed and each tensor's name.")
    @Nullable
    Long seed;

    @Option(
            names = "--device",
            defaultValue = "cpu",
            description = "Where to compute: cpu, which the disk keeps waiting anyway.")
    String device;

    @Option(
            names = "--lenient",
            description = "Only note it where the configuration asks for tensors that the adapter lacks.")
    boolean lenient;

    @Option(names = "--allow-non-finite", description = "Accept NaN and infinite values in changed tensors.")
    boolean allowNonFinite;

    /** @throws ParameterException if there is no adapter */
    void check(CommandSpec spec) {
        if (adapters.isEmpty()) {
            throw new ParameterException(spec.commandLine(), "name at least one adapter with --adapter");
        }
        if (!device.equals("cpu")) {
            throw new ParameterException(
                    spec.commandLine(),
                    "--device is " + device
                            + " but must be cpu: checkpoints are merged on the CPU, whose bits the result"
                            + " is defined by");
        }
    }

    MergeOptions options(WeightedAdapter[] folders, @Nullable Path residual) {
        return new MergeOptions(
                checkpoint,
                List.of(folders),
                dtype,
                shardSize,
                tied,
                seed == null ? OptionalLong.empty() : OptionalLong.of(seed),
                residual,
                lenient,
                allowNonFinite);
    }

    static final class TypeName implements ITypeConverter<DType> {
        @Override
        public DType convert(String text) {
            return switch (text.toLowerCase(Locale.ROOT)) {
                case "f32", "float32" -> DType.F32;
                case "bf16", "bfloat16" -> DType.BF16;
                case "f16", "float16" -> DType.F16;
                default -> throw new TypeConversionException("'" + text + "' is none of f32, bf16 and f16");
            };
        }
    }

    static final class Size implements ITypeConverter<Long> {
        private static final Pattern SIZE = Pattern.compile("([0-9]{1,12}(?:\\.[0-9]{1,6})?) ?([kKMGT]i?)?B?");

        @Override
        public Long convert(String text) {
            Matcher matcher = SIZE.matcher(text);
            if (!matcher.matches()) {
                throw new TypeConversionException("'" + text + "' is no size: write a number with MB, GB, MiB or GiB");
            }
            String unit = matcher.group(2) == null ? "" : matcher.group(2);
            double base = unit.endsWith("i") ? 1024 : 1000;
            int power = unit.isEmpty() ? 0 : "KMGT".indexOf(Character.toUpperCase(unit.charAt(0))) + 1;
            long bytes = (long) (Double.parseDouble(matcher.group(1)) * Math.pow(base, power));
            if (bytes < 1) {
                throw new TypeConversionException("'" + text + "' is no size: it must be positive");
            }
            return bytes;
        }
    }
}
