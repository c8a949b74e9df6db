//! Nodes: taken in, heard or not, taken out.

use super::{
    Applied, Event, Kind, NameChoice, Outcome, Refusal, RegisterNode, State, UpdateNode,
    limits::{MAX_NODES, MAX_UNDERLAYS, check_labels},
    unknown,
};
use crate::types::{Name, Node, NodeId, NodeStatus, Resources, Role, VersionRange};

impl State {
    /// A node that was a member before and is not heard any more comes back as a new one: its old
    /// self goes, with the endpoints that died with it.
    pub(super) fn register_node(&mut self, register: RegisterNode) -> Result<Applied, Refusal> {
        let RegisterNode { mut node, name, mut underlays, token } = register;
        self.founded()?;
        self.check_token(&token, &node)?;
        check_labels(&node.labels)?;
        self.check_versions(&node)?;
        if self.nodes.contains_key(&node.id) {
            return Err(Refusal::IdUsed { kind: Kind::Node });
        }
        let former = self.nodes.values().find(|other| other.public_key == node.public_key);
        let former = match former.map(|other| (other.id, other.status, other.name.clone())) {
            Some((_, NodeStatus::Ready, name)) => return Err(Refusal::KeyInUse { name }),
            Some((id, NodeStatus::Down, _)) => Some(id),
            None => None,
        };
        if former.is_none() && self.nodes.len() >= MAX_NODES {
            return Err(Refusal::TooMany { kind: Kind::Node, limit: MAX_NODES });
        }
        node.name = self.free_node_name(&node, name, former)?;

        self.use_token(token, &node);
        let mut events = match former {
            Some(former) => self.take_out(former)?,
            None => Vec::new(),
        };
        underlays.truncate(MAX_UNDERLAYS);
        self.underlays.insert(node.id, underlays);
        self.node_names.insert(node.name.clone(), node.id);
        self.nodes.insert(node.id, node.clone());
        let rotations = self.founded()?.secrets.root_rotations;
        self.certified.insert(node.id, rotations);
        events.push(Event::NodeChanged(node.id));
        Ok(Applied { outcome: Outcome::Node(node), events })
    }

    /// A node that has no wire version in common with a manager's could never be looked for.
    fn check_versions(&self, node: &Node) -> Result<(), Refusal> {
        let given = node.versions;
        let differs = |other: &&Node| {
            let VersionRange { lowest, highest } = other.versions;
            other.role == Role::Manager && (given.highest < lowest || given.lowest > highest)
        };
        match self.nodes.values().find(differs) {
            Some(Node { name, versions, .. }) => {
                Err(Refusal::Versions { given, of: name.clone(), other: *versions })
            }
            None => Ok(()),
        }
    }

    pub(super) fn set_node_status(
        &mut self,
        id: NodeId,
        status: NodeStatus,
    ) -> Result<Applied, Refusal> {
        let node = self.nodes.get_mut(&id).ok_or_else(|| unknown(Kind::Node, id))?;
        let changed = node.status != status;
        node.status = status;
        if status == NodeStatus::Ready {
            self.end_token_use(id);
        }
        let events = changed.then_some(Event::NodeStatusChanged(id, status)).into_iter().collect();
        Ok(Applied { outcome: Outcome::Done, events })
    }

    /// Who was a manager has seen the cluster secret, which gets a successor.
    pub(super) fn set_role(&mut self, id: NodeId, role: Role) -> Result<Applied, Refusal> {
        let is_other = |other: &&Node| other.role == Role::Manager && other.id != id;
        let only = !self.nodes.values().any(|other| is_other(&other));
        let node = self.nodes.get_mut(&id).ok_or_else(|| unknown(Kind::Node, id))?;
        if role == Role::Worker && only {
            return Err(Refusal::OnlyManager { name: node.name.clone() });
        }
        let changed = node.role != role;
        node.role = role;
        let outcome = Outcome::Node(node.clone());
        self.secret_due |= changed && role == Role::Worker;
        let events = changed.then_some(Event::RoleChanged(id, role)).into_iter().collect();
        Ok(Applied { outcome, events })
    }

    pub(super) fn update_node(&mut self, update: UpdateNode) -> Result<Applied, Refusal> {
        let node = self.nodes.get_mut(&update.node);
        let node = node.ok_or_else(|| unknown(Kind::Node, update.node))?;
        let mut labels = node.labels.clone();
        for key in &update.labels_removed {
            if labels.remove(key).is_none() {
                return Err(Refusal::NoLabel { node: node.name.clone(), key: key.clone() });
            }
        }
        labels.extend(update.labels_added);
        check_labels(&labels)?;
        node.labels = labels;
        node.availability = update.availability.unwrap_or(node.availability);
        // Nothing that agents hold has changed.
        let events = vec![Event::NodeUpdated(node.id)];
        Ok(Applied { outcome: Outcome::Node(node.clone()), events })
    }

    pub(super) fn set_capacity(
        &mut self,
        id: NodeId,
        capacity: Resources,
    ) -> Result<Applied, Refusal> {
        if !self.nodes.contains_key(&id) {
            return Err(unknown(Kind::Node, id));
        }
        self.capacities.insert(id, capacity);
        Ok(Applied { outcome: Outcome::Done, events: vec![Event::NodeUpdated(id)] })
    }

    pub(super) fn remove_node(&mut self, id: NodeId) -> Result<Applied, Refusal> {
        let events = self.take_out(id)?;
        self.secret_due = true;
        Ok(Applied { outcome: Outcome::Done, events })
    }

    fn take_out(&mut self, id: NodeId) -> Result<Vec<Event>, Refusal> {
        let node = self.nodes.remove(&id).ok_or_else(|| unknown(Kind::Node, id))?;
        self.node_names.remove(&node.name);
        self.underlays.remove(&id);
        self.certified.remove(&id);
        self.capacities.remove(&id);
        self.end_token_use(id);
        let mut events = Vec::new();
        self.orphan_all(id, &mut events);
        let endpoints = self.node_endpoints.remove(&id).unwrap_or_default();
        for endpoint in endpoints {
            events.extend(self.free_endpoint(endpoint).map(Event::EndpointRemoved));
        }
        events.push(Event::NodeRemoved(id));
        Ok(events)
    }

    /// Finds the name that a new node gets; what its former self had is free to it.
    fn free_node_name(
        &self,
        node: &Node,
        choice: NameChoice,
        former: Option<NodeId>,
    ) -> Result<Name, Refusal> {
        let holder = |name: &Name| self.node_names.get(name).filter(|id| Some(**id) != former);
        let Some(taken) = holder(&node.name) else {
            return Ok(node.name.clone());
        };
        let near = |number: usize| {
            let suffix = format!("-{number}");
            let text = node.name.as_str();
            // Names are ASCII, so every cut is between characters.
            let room = text.len().min(63 - suffix.len());
            format!("{}{suffix}", &text[..room]).parse::<Name>().ok()
        };
        let found = match choice {
            NameChoice::Exact => None,
            NameChoice::Near => {
                (2..=MAX_NODES + 1).filter_map(near).find(|name| holder(name).is_none())
            }
        };
        found.ok_or_else(|| Refusal::NameTaken {
            kind: Kind::Node,
            name: node.name.clone(),
            id: taken.to_string(),
        })
    }
}
