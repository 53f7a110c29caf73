package org.lora4j.combine;

import java.util.Collection;
import java.util.LinkedHashSet;
import java.util.Set;
import org.lora4j.config.ModuleSelector;

/** The shortest names for modules. */
public final class TargetNames {
    private TargetNames() {}

    /**
     * The last parts of the paths if they mean exactly these of all modules, else the whole paths.
     *
     * @param modules the paths to name
     * @param all the paths of all modules that could be meant
     */
    public static ModuleSelector of(Collection<String> modules, Collection<String> all) {
        Set<String> wanted = Set.copyOf(modules);
        Set<String> last = new LinkedHashSet<>();
        modules.forEach(path -> last.add(path.substring(path.lastIndexOf('.') + 1)));
        boolean exact = all.stream()
                .filter(path -> last.contains(path.substring(path.lastIndexOf('.') + 1)))
                .allMatch(wanted::contains);
        return ModuleSelector.names(exact ? last : modules);
    }
}
