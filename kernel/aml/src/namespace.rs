//! The tree of named objects (ACPI 6.5, section 5.3).

use alloc::vec::Vec;
use core::cell::Cell;

use crate::AmlError;
use crate::cursor::{Cursor, Path};
use crate::value::{Bytes, Value};

/// The number of a node.
pub type NodeId = usize;
/// The root.
pub const ROOT: NodeId = 0;
/// Most nodes.
const MAX_NODES: usize = 1 << 13;
/// Most aliases of aliases.
const MAX_ALIASES: usize = 8;

/// What has a name.
#[derive(Clone, Debug)]
pub enum Object<'a> {
    /// Something that only contains, such as `\_SB`.
    Scope,
    /// A device.
    Device,
    /// A value that is not decoded yet, which starts here.
    Coded(Cursor<'a>),
    /// A value.
    Value(Value<'a>),
    /// A method.
    Method {
        /// Number of arguments, 0 to 7.
        arguments: u8,
        /// Its terms.
        body: Cursor<'a>,
    },
    /// An operation region.
    Region {
        /// The address space.
        space: u8,
        /// Where it starts there, in bytes.
        offset: u64,
    },
    /// A field of a region.
    Field {
        /// The region.
        region: NodeId,
        /// Its first bit.
        bit: u64,
        /// Its length in bits.
        bits: u64,
    },
    /// A field of a buffer.
    BufferField {
        /// The buffer.
        bytes: Bytes,
        /// Its first bit.
        bit: u64,
        /// Its length in bits, 64 at most.
        bits: u64,
    },
    /// Another name of an object.
    Alias(NodeId),
    /// Something of which only the name is known: a mutex, an event, a field
    /// behind an index.
    Opaque,
}

#[derive(Debug)]
struct Node<'a> {
    name: [u8; 4],
    parent: NodeId,
    /// The newest child.
    child: Option<NodeId>,
    /// The next older child of the same parent.
    next: Option<NodeId>,
    object: Object<'a>,
}

/// The tree.
#[derive(Debug)]
pub struct Namespace<'a> {
    nodes: Vec<Node<'a>>,
    visits: Cell<u32>,
}

impl<'a> Namespace<'a> {
    /// The names that are there before any table is loaded (ACPI 6.5, table
    /// 5.176).
    pub fn new() -> Self {
        let mut namespace = Self {
            nodes: Vec::new(),
            visits: Cell::new(0),
        };
        namespace.nodes.push(Node {
            name: *b"\\___",
            parent: ROOT,
            child: None,
            next: None,
            object: Object::Scope,
        });
        for name in [b"_GPE", b"_PR_", b"_SB_", b"_SI_", b"_TZ_"] {
            namespace.link(ROOT, *name, Object::Scope);
        }
        namespace.link(ROOT, *b"_GL_", Object::Opaque);
        namespace.link(ROOT, *b"_REV", Object::Value(Value::Integer(2)));
        namespace.link(
            ROOT,
            *b"_OS_",
            Object::Value(Value::string(b"Microsoft Windows NT")),
        );
        // Of no operating system: Return (Zero).
        let body = Cursor::new(&[0xa4, 0x00], 0);
        let arguments = 1;
        namespace.link(ROOT, *b"_OSI", Object::Method { arguments, body });
        namespace
    }

    fn link(&mut self, parent: NodeId, name: [u8; 4], object: Object<'a>) -> NodeId {
        let node = self.nodes.len();
        let next = match self.nodes.get_mut(parent) {
            Some(parent) => parent.child.replace(node),
            None => None,
        };
        self.nodes.push(Node {
            name,
            parent,
            child: None,
            next,
            object,
        });
        node
    }

    /// Number of nodes.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Nodes that were looked at in search of a name.
    pub fn visits(&self) -> u32 {
        self.visits.get()
    }

    /// Takes away all but the first `count` nodes: those that a method made.
    pub fn truncate(&mut self, count: usize) {
        while self.nodes.len() > count.max(1) {
            // The newest node is its parent's newest child.
            if let Some(node) = self.nodes.pop()
                && let Some(parent) = self.nodes.get_mut(node.parent)
            {
                parent.child = node.next;
            }
        }
    }

    /// The object of a node; aliases are followed.
    pub fn object(&self, node: NodeId) -> Option<&Object<'a>> {
        self.nodes.get(self.target(node)?).map(|node| &node.object)
    }

    /// The node that an alias stands for; any other as it is.
    pub fn target(&self, mut node: NodeId) -> Option<NodeId> {
        for _ in 0..MAX_ALIASES {
            match self.nodes.get(node)?.object {
                Object::Alias(other) => node = other,
                _ => return Some(node),
            }
        }
        None
    }

    /// Replaces the object of a node; aliases are followed.
    pub fn set(&mut self, node: NodeId, object: Object<'a>) {
        let target = self.target(node);
        if let Some(node) = target.and_then(|node| self.nodes.get_mut(node)) {
            node.object = object;
        }
    }

    /// The node that contains this one; the root contains itself.
    pub fn parent(&self, node: NodeId) -> NodeId {
        self.nodes.get(node).map_or(ROOT, |node| node.parent)
    }

    /// The children of a node, the newest first.
    pub fn children(&self, node: NodeId) -> impl Iterator<Item = NodeId> + '_ {
        let first = self.nodes.get(node).and_then(|node| node.child);
        core::iter::successors(first, |&child| self.nodes.get(child)?.next)
    }

    /// The child of this name.
    pub fn child(&self, node: NodeId, name: [u8; 4]) -> Option<NodeId> {
        self.children(node).find(|&child| {
            self.visits.set(self.visits.get().saturating_add(1));
            self.nodes.get(child).is_some_and(|node| node.name == name)
        })
    }

    /// All nodes that are devices.
    pub fn devices(&self) -> impl Iterator<Item = NodeId> + '_ {
        (0..self.nodes.len()).filter(|&node| matches!(self.nodes[node].object, Object::Device))
    }

    /// Where a path starts, `scope` being where it stands.
    fn start(&self, scope: NodeId, path: &Path<'_>) -> NodeId {
        if path.absolute {
            return ROOT;
        }
        (0..path.parents).fold(scope, |node, _| self.parent(node))
    }

    /// The object of this name, as seen from `scope` (ACPI 6.5, section 5.3).
    pub fn find(&self, scope: NodeId, path: &Path<'_>) -> Option<NodeId> {
        let mut start = self.start(scope, path);
        let mut names = path.names();
        let Some(first) = names.next() else {
            return Some(start);
        };
        let alone = path.segments.len() == 4 && path.parents == 0 && !path.absolute;
        if !alone {
            let first = self.child(start, first)?;
            return names.try_fold(first, |node, name| self.child(node, name));
        }
        // A single name is looked for further and further up.
        loop {
            if let Some(found) = self.child(start, first) {
                return Some(found);
            }
            if start == ROOT {
                return None;
            }
            start = self.parent(start);
        }
    }

    /// Makes a new object of this name.
    pub fn create(
        &mut self,
        scope: NodeId,
        path: &Path<'_>,
        object: Object<'a>,
    ) -> Result<NodeId, AmlError> {
        let missing = AmlError::NoObject { at: path.at };
        let start = self.start(scope, path);
        let (way, last) = path
            .segments
            .split_last_chunk::<4>()
            .ok_or(AmlError::NotAName { at: path.at })?;
        let parent = way
            .chunks_exact(4)
            .filter_map(|name| name.first_chunk().copied())
            .try_fold(start, |node, name| self.child(node, name))
            .ok_or(missing)?;
        if self.nodes.len() >= MAX_NODES || self.nodes.try_reserve(1).is_err() {
            return Err(AmlError::TooLarge);
        }
        Ok(self.link(parent, *last, object))
    }
}
