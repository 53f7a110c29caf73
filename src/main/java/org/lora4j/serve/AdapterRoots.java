package org.lora4j.serve;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.InvalidPathException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.TreeSet;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;
import org.lora4j.format.AdapterConfigJson;

/**
 * The folders adapters may come from. A name that is not registered means the folder of that name in one of them; a path
 * outside them, be it by {@code ..} or by a symbolic link, is refused.
 */
public final class AdapterRoots implements AdapterResolver {
    private final List<Path> roots = new ArrayList<>();

    /**
     * @param roots folders that exist
     * @throws IOException if one of them does not
     */
    public AdapterRoots(List<Path> roots) throws IOException {
        for (Path root : roots) {
            this.roots.add(root.toRealPath());
        }
    }

    @Override
    public @Nullable Path find(String name) {
        for (Path root : roots) {
            try {
                Path folder = root.resolve(name);
                if (folder.normalize().getNameCount() > root.getNameCount()
                        && Files.isRegularFile(folder.resolve(AdapterConfigJson.FILE_NAME))
                        && isWithin(folder.toRealPath())) {
                    return folder.toRealPath();
                }
            } catch (InvalidPathException | IOException e) {
                // No folder of this name here.
                continue;
            }
        }
        return null;
    }

    /**
     * The real path of an adapter's folder.
     *
     * @throws IllegalArgumentException if it is outside the roots or has no adapter; the message tells neither from the
     *     other beyond the roots
     */
    public Path check(String path) {
        for (Path root : roots) {
            try {
                Path real = root.resolve(path).toRealPath();
                if (isWithin(real) && Files.isRegularFile(real.resolve(AdapterConfigJson.FILE_NAME))) {
                    return real;
                }
            } catch (InvalidPathException | IOException e) {
                // Not there, or not a path at all.
                continue;
            }
        }
        throw new IllegalArgumentException("\"" + path + "\" is no adapter in a folder the server may read: it takes "
                + "folders with " + AdapterConfigJson.FILE_NAME + " within its adapter roots");
    }

    /** Names that {@link #find} knows: those of the folders with adapters right in the roots, sorted. */
    public List<String> names() {
        TreeSet<String> names = new TreeSet<>();
        for (Path root : roots) {
            try (Stream<Path> folders = Files.list(root)) {
                folders.filter(folder -> Files.isRegularFile(folder.resolve(AdapterConfigJson.FILE_NAME)))
                        .forEach(folder -> names.add(String.valueOf(folder.getFileName())));
            } catch (IOException e) {
                // It was there at the start; without it there are fewer names.
                continue;
            }
        }
        return List.copyOf(names);
    }

    /** Whether there are any. */
    public boolean isEmpty() {
        return roots.isEmpty();
    }

    private boolean isWithin(Path real) {
        return roots.stream().anyMatch(root -> real.startsWith(root) && !real.equals(root));
    }
}
