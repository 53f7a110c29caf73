package org.lora4j.model;

import java.lang.reflect.Array;
import java.lang.reflect.Field;
import java.lang.reflect.InaccessibleObjectException;
import java.lang.reflect.Modifier;
import java.util.ArrayList;
import java.util.Collection;
import java.util.Collections;
import java.util.HashMap;
import java.util.IdentityHashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.function.Consumer;
import org.bytedeco.pytorch.Module;
import org.bytedeco.pytorch.StringSharedModuleDict;
import org.bytedeco.pytorch.StringSharedModuleDictItem;
import org.jspecify.annotations.Nullable;
import org.lora4j.layer.LoraLayer;

/**
 * The modules of a model by dotted path, with the Java objects behind them and the places that hold those objects.
 *
 * <p>LibTorch knows the tree of C++ modules and their names, but not the Java objects whose {@code forward} runs. This class
 * walks the Java objects from the root through fields, arrays, lists and maps, and joins the two views by the address of
 * the C++ module. A module without a Java object runs inside C++, where no adapter can reach it.
 */
final class ModuleTree {
    /** Puts another object where a module object was found. */
    private record Place(String where, Consumer<Module> set) {}

    /** A C++ module: its address, and its class for messages. No handle, which would die with the scope it was made in. */
    private record Node(long address, String type) {}

    /** What was found in Java for one C++ module. */
    private static final class Found {
        final Module object;
        final List<Place> places = new ArrayList<>();

        Found(Module object) {
            this.object = object;
        }
    }

    private final Map<Long, Found> byAddress = new HashMap<>();
    private final Map<String, Node> nodes = new LinkedHashMap<>();

    ModuleTree(Module root) {
        walk(root, Collections.newSetFromMap(new IdentityHashMap<>()));
        StringSharedModuleDict named = root.named_modules();
        Map<Long, String> seen = new HashMap<>();
        for (long i = 0; i < named.size(); i++) {
            StringSharedModuleDictItem item = named.get(i);
            Module cpp = item.access();
            // JavaCPP gives null for the root's empty name.
            String path = item.key() == null ? "" : item.key().getString();
            // A module registered twice counts once, under its first name, as in PyTorch.
            if (!path.isEmpty() && seen.putIfAbsent(cpp.address(), path) == null) {
                nodes.put(path, new Node(cpp.address(), cpp.name().getString()));
            }
        }
    }

    /** The dotted paths of all modules below the root, parents before children. */
    Set<String> paths() {
        return Collections.unmodifiableSet(nodes.keySet());
    }

    /** The Java object whose {@code forward} the model calls for a module, or null if the module runs inside C++. */
    @Nullable
    Module object(String path) {
        Found found = byAddress.get(node(path).address());
        return found == null ? null : found.object;
    }

    /** The name of the C++ class at a path. */
    String type(String path) {
        return node(path).type();
    }

    private Node node(String path) {
        Node node = nodes.get(path);
        if (node == null) {
            throw new IllegalArgumentException("no module '" + path + "' in the model");
        }
        return node;
    }

    /**
     * Puts another Java object for the same C++ module wherever the model holds the present one.
     *
     * @throws IllegalStateException if a place cannot be written
     */
    void replace(String path, Module replacement) {
        Found found = byAddress.get(node(path).address());
        if (found == null || found.places.isEmpty()) {
            throw new IllegalArgumentException("module '" + path + "' (" + type(path)
                    + ") is not held by a Java object of the model, so its forward runs inside C++ and cannot take an "
                    + "adapter: keep it in a field, array, list or map of its parent's Java class and call its forward "
                    + "from there, instead of inside a SequentialImpl");
        }
        Found next = new Found(replacement);
        next.places.addAll(found.places);
        for (Place place : found.places) {
            try {
                place.set.accept(replacement);
            } catch (RuntimeException e) {
                throw new IllegalStateException(
                        "cannot replace module '" + path + "' in " + place.where
                                + ": make the field of type "
                                + replacement.getClass().getSuperclass().getSimpleName()
                                + " or a supertype, not a record component, and the collection modifiable",
                        e);
            }
        }
        byAddress.put(replacement.address(), next);
    }

    private void walk(Module holder, Set<Object> visited) {
        if (!visited.add(holder) || holder instanceof LoraLayer) {
            return;
        }
        for (Class<?> c = holder.getClass(); c != null && !isLibrary(c); c = c.getSuperclass()) {
            for (Field field : c.getDeclaredFields()) {
                if (!Modifier.isStatic(field.getModifiers()) && !field.getType().isPrimitive()) {
                    visitField(holder, field, visited);
                }
            }
        }
    }

    private static boolean isLibrary(Class<?> c) {
        return c.getName().startsWith("org.bytedeco.") || c == Object.class;
    }

    private void visitField(Object holder, Field field, Set<Object> visited) {
        Class<?> type = field.getType();
        if (!Module.class.isAssignableFrom(type)
                && !type.isAssignableFrom(Module.class)
                && !type.isInterface()
                && !Collection.class.isAssignableFrom(type)
                && !Map.class.isAssignableFrom(type)
                && !type.isArray()) {
            return;
        }
        String where = field.getDeclaringClass().getName() + "." + field.getName();
        Object value;
        try {
            field.setAccessible(true);
            value = field.get(holder);
        } catch (InaccessibleObjectException | IllegalAccessException e) {
            throw new IllegalArgumentException(
                    "cannot read field " + where + ": open its package to org.lora4j (opens clause or --add-opens)", e);
        }
        visit(value, new Place(where, m -> set(field, holder, m)), visited);
    }

    private static void set(Field field, Object holder, Module value) {
        try {
            field.set(holder, value);
        } catch (IllegalAccessException e) {
            throw new IllegalStateException(e);
        }
    }

    @SuppressWarnings("unchecked")
    private void visit(@Nullable Object value, Place place, Set<Object> visited) {
        if (value instanceof Module module) {
            if (!module.isNull()) {
                byAddress
                        .computeIfAbsent(module.address(), a -> new Found(module))
                        .places
                        .add(place);
                walk(module, visited);
            }
        } else if (value instanceof List<?> list) {
            if (visited.add(list)) {
                for (int i = 0; i < list.size(); i++) {
                    int at = i;
                    visit(
                            list.get(i),
                            new Place(place.where + "[" + i + "]", m -> ((List<Object>) list).set(at, m)),
                            visited);
                }
            }
        } else if (value instanceof Map<?, ?> map) {
            if (visited.add(map)) {
                for (Map.Entry<?, ?> entry : List.copyOf(map.entrySet())) {
                    Object key = entry.getKey();
                    visit(
                            entry.getValue(),
                            new Place(place.where + "[" + key + "]", m -> ((Map<Object, Object>) map).put(key, m)),
                            visited);
                }
            }
        } else if (value != null
                && value.getClass().isArray()
                && !value.getClass().getComponentType().isPrimitive()) {
            if (visited.add(value)) {
                for (int i = 0; i < Array.getLength(value); i++) {
                    int at = i;
                    visit(
                            Array.get(value, i),
                            new Place(place.where + "[" + i + "]", m -> Array.set(value, at, m)),
                            visited);
                }
            }
        }
    }
}
