package org.lora4j.format;

import java.io.IOException;
import java.util.ArrayList;
import java.util.Collection;
import java.util.Comparator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeSet;
import java.util.regex.Pattern;
import org.jspecify.annotations.Nullable;
import org.lora4j.config.LoraConfig;

/** Makes a {@link ForeignAdapter} of a file; collects everything that is wrong before it gives up. */
final class ForeignReader {
    private static final Pattern ORIGINAL_UNET = Pattern.compile("input_blocks|middle_block|output_blocks");

    private final TensorFile file;
    private final @Nullable String part;
    private final ModuleNames names;
    private final AdapterLayout layout;
    private final List<String> problems = new ArrayList<>();

    /**
     * A reader.
     *
     * @param part the part to read, or null if all of them belong to the base model
     */
    ForeignReader(TensorFile file, @Nullable String part, Collection<String> modulePaths) {
        this.file = file;
        this.part = part;
        this.names = new ModuleNames(modulePaths);
        this.layout = AdapterLayout.of(file.tensors().keySet());
    }

    ForeignAdapter read() throws IOException {
        if (layout == AdapterLayout.PEFT) {
            throw new FormatException(file.path() + ": has PEFT's layout already; load the folder it is in");
        }
        if (layout == AdapterLayout.GGUF) {
            throw new FormatException(file.path() + ": has GGUF's names; convert it with GgufAdapter");
        }
        if (layout == AdapterLayout.UNKNOWN) {
            throw new FormatException(
                    file.path() + ": its tensors have the names of no layout, or of several, among PEFT, "
                            + "kohya and diffusers; convert it with the program that wrote it. "
                            + AdapterLayout.describe(file.tensors().keySet()));
        }
        List<ForeignModule> modules = gather();
        if (modules.isEmpty() && part != null) {
            problems.add("it has no part \"" + part + "\" but " + ForeignAdapter.parts(file));
        }
        resolve(modules);
        for (ForeignModule module : modules) {
            module.check(file, problems);
        }
        refuseProblems();
        Map<String, ForeignAdapter.Origin> tensors = new LinkedHashMap<>();
        modules.forEach(module -> tensors.putAll(module.origins()));
        LoraConfig config = new ForeignConfig(file, layout, modules, names, problems).config();
        refuseProblems();
        Map<String, String> metadata = new LinkedHashMap<>(file.metadata());
        metadata.remove(ForeignConfig.METADATA);
        return new ForeignAdapter(layout, config, tensors, metadata);
    }

    private void refuseProblems() throws FormatException {
        if (!problems.isEmpty()) {
            String what = "this adapter in " + layout + " layout has no exact form in PEFT's, for this base model";
            throw ForeignAdapter.refused(file.path().toString(), what, problems);
        }
    }

    /** The modules of the file in the order of their names, each with its tensors. */
    private List<ForeignModule> gather() {
        Map<List<String>, ForeignModule> modules = new LinkedHashMap<>();
        List<TensorInfo> sorted = new ArrayList<>(file.tensors().values());
        sorted.sort(Comparator.comparing(TensorInfo::name, JsonText.BY_CODE_POINT));
        List<String> unknown = new ArrayList<>();
        for (TensorInfo tensor : sorted) {
            LoraKey key = ForeignAdapter.parse(layout, tensor.name());
            if (key == null) {
                unknown.add(tensor.name());
            } else if (part == null || part.equals(key.part())) {
                ForeignModule module = modules.computeIfAbsent(
                        List.of(key.part(), key.module()), id -> new ForeignModule(id.get(0), id.get(1)));
                TensorInfo other = module.tensors.putIfAbsent(key.role(), tensor);
                if (other != null) {
                    problems.add(other.name() + " and " + tensor.name() + " are the same tensor twice");
                }
            }
        }
        if (!unknown.isEmpty()) {
            problems.add("names that mean nothing here: " + String.join(", ", unknown));
        }
        return new ArrayList<>(modules.values());
    }

    private void resolve(List<ForeignModule> modules) {
        Map<String, ForeignModule> byPath = new LinkedHashMap<>();
        List<String> unresolved = new ArrayList<>();
        for (ForeignModule module : modules) {
            Set<String> found = names.find(layout, module.part, module.module);
            if (found.isEmpty()) {
                unresolved.add(module.keys());
            } else if (found.size() > 1) {
                problems.add(module.keys() + " may mean any of the modules " + found);
            } else {
                module.path = found.iterator().next();
                ForeignModule other = byPath.putIfAbsent(module.path, module);
                if (other != null) {
                    problems.add(other.keys() + " and " + module.keys() + " mean the same module \"" + module.path
                            + "\"; convert one part at a time");
                }
            }
        }
        if (!unresolved.isEmpty()) {
            Set<String> parts = new TreeSet<>();
            modules.forEach(module -> parts.add(module.part));
            String hint = parts.size() > 1
                    ? " (the file has " + parts + ", which may be for several models: convert one part at a time)"
                    : unresolved.stream().anyMatch(ORIGINAL_UNET.asPredicate())
                            ? " (input_blocks, middle_block and output_blocks are names of the original code of Stable "
                                    + "Diffusion: the module paths must be those of that code)"
                            : "";
            problems.add("names without a module in the base model" + hint + ": " + String.join(", ", unresolved));
        }
        modules.sort(Comparator.comparing((ForeignModule module) -> module.path, JsonText.BY_CODE_POINT));
    }
}
