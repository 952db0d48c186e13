//! The exploration: every move from every world, until nothing new appears.

use super::world::SETTLE_WITHIN;
use super::*;

/// One world that was reached, and how.
pub(super) struct Reached {
    parent: usize,
    made: Option<Move>,
    next: Vec<usize>,
    /// Everybody is there, and not exactly one is Active.
    disagrees: bool,
}

pub(super) struct Exploration<'a> {
    scenario: &'a Scenario,
    reached: Vec<Reached>,
    found: Found,
}

pub(super) fn explore(scenario: &Scenario) -> Found {
    let first = World::new(scenario);
    let mut exploration = Exploration {
        scenario,
        reached: Vec::new(),
        found: Found { settled_on: Vec::new(), settled_on_with_all_up: Vec::new() },
    };
    let mut known = HashMap::from([(first.key(scenario), 0)]);
    exploration.enter(&first, 0, None);
    let mut queue = VecDeque::from([(0, first)]);
    while let Some((index, world)) = queue.pop_front() {
        for made in world.moves() {
            let mut next = world.clone();
            let changes = next.make(scenario, made);
            exploration.check_changes(&world, &changes, index, made);
            let fresh = exploration.reached.len();
            let target = *known.entry(next.key(scenario)).or_insert(fresh);
            exploration.reached[index].next.push(target);
            if target == fresh {
                exploration.enter(&next, index, Some(made));
                queue.push_back((fresh, next));
            }
        }
    }
    exploration.assert_no_endless_disagreement();
    println!("{}: {} worlds", scenario.name, exploration.reached.len());
    exploration.found
}

impl Exploration<'_> {
    pub(super) fn enter(&mut self, world: &World, parent: usize, made: Option<Move>) {
        let index = self.reached.len();
        assert!(index < MAX_WORLDS, "{}: unbounded", self.scenario.name);
        let disagrees = world.all_there() && world.actives().len() != 1;
        self.reached.push(Reached { parent, made, next: Vec::new(), disagrees });
        self.check_world(world, index);
        self.assert_settles(world, index);
    }

    pub(super) fn check_world(&self, world: &World, index: usize) {
        let rules = &self.scenario.rules;
        let actives = world.actives();
        if rules.never_two && actives.len() > 1 {
            self.fail("two Actives", index, None);
        }
        if rules.two_only_in_flight && actives.len() > 1 {
            let between = |f: &Flight| actives.contains(&f.from) && actives.contains(&f.to);
            if !world.air.iter().any(between) {
                self.fail("two Actives, and nothing in the air between them", index, None);
            }
        }
        if rules.one_takeover_per_cause && world.takeovers > world.causes {
            self.fail("a takeover without cause", index, None);
        }
    }

    pub(super) fn check_changes(
        &self,
        before: &World,
        changes: &[(usize, State, State, Reason)],
        index: usize,
        made: Move,
    ) {
        for &(node, from, to, reason) in changes {
            let slept = before.nodes[node].asleep_until.is_some() && reason == Reason::Absence;
            if self.scenario.rules.keep_role && from == State::Active && to == State::Backup && !slept {
                self.fail("the role was given up", index, Some(made));
            }
        }
    }

    pub(super) fn assert_settles(&mut self, world: &World, index: usize) {
        let mut world = world.clone();
        let start = world.now;
        let last_change = world.settle(self.scenario);
        if last_change.is_none_or(|last_change| last_change > start + SETTLE_WITHIN) {
            self.fail("left in peace, it does not come to rest", index, None);
        }
        let up = world.nodes.iter().filter(|node| node.router.is_some()).count();
        match world.actives()[..] {
            [node] => {
                let able = world.nodes.iter().any(|other| other.router.is_some() && other.handicap == 0);
                if self.scenario.rules.able_first && able && world.nodes[node].handicap > 0 {
                    self.fail("the role stays with a copy that another is better than", index, None);
                }
                self.found.settled_on.push(node);
                if up == world.nodes.len() {
                    self.found.settled_on_with_all_up.push(node);
                }
            }
            [] if up == 0 => {}
            _ => self.fail("left in peace, it does not come to one Active", index, None),
        }
    }

    /// Looks for a world that disagrees and can come back to itself: that would be a run that disagrees
    /// again and again, for ever.
    pub(super) fn assert_no_endless_disagreement(&self) {
        let circles = circles(&self.reached);
        let endless = |index: &usize| self.reached[*index].disagrees && circles[*index];
        if let Some(index) = (0..self.reached.len()).find(endless) {
            self.fail("disagreement can come back for ever", index, None);
        }
    }

    /// Shows how it came to this.
    pub(super) fn fail(&self, what: &str, index: usize, last: Option<Move>) -> ! {
        let mut path = Vec::from_iter(last);
        let mut at = index;
        while let Some(made) = self.reached[at].made {
            path.push(made);
            at = self.reached[at].parent;
        }
        path.reverse();
        let mut world = World::new(self.scenario);
        let start = world.now;
        println!("{}: {what}\n{world}", self.scenario.name);
        for made in path {
            world.make(self.scenario, made);
            println!("{:>10.3?} {made:?}\n{world}", world.now - start);
        }
        panic!("{}: {what}; how it came to this is printed above", self.scenario.name);
    }
}

/// Which worlds can come back to themselves: those that share a strongly connected component with
/// another world, or lead to themselves (Kosaraju's algorithm).
pub(super) fn circles(reached: &[Reached]) -> Vec<bool> {
    let forward: Vec<&[usize]> = reached.iter().map(|world| world.next.as_slice()).collect();
    let mut back = vec![Vec::new(); reached.len()];
    for (index, next) in forward.iter().enumerate() {
        for &next in *next {
            back[next].push(index);
        }
    }
    let back: Vec<&[usize]> = back.iter().map(Vec::as_slice).collect();
    let mut seen = vec![false; reached.len()];
    let mut order = Vec::new();
    for index in 0..reached.len() {
        visit(&forward, index, &mut seen, &mut order);
    }
    seen.fill(false);
    let mut on_circle = vec![false; reached.len()];
    for index in order.into_iter().rev() {
        let mut component = Vec::new();
        visit(&back, index, &mut seen, &mut component);
        let circle = component.len() > 1 || forward[index].contains(&index);
        for member in component {
            on_circle[member] = circle;
        }
    }
    on_circle
}

/// Depth-first search from `start`; appends what is new in the order in which it is left.
pub(super) fn visit(edges: &[&[usize]], start: usize, seen: &mut [bool], left: &mut Vec<usize>) {
    if std::mem::replace(&mut seen[start], true) {
        return;
    }
    let mut path = vec![(start, edges[start].iter())];
    while let Some((index, next)) = path.last_mut() {
        match next.find(|next| !seen[**next]) {
            Some(&next) => {
                seen[next] = true;
                path.push((next, edges[next].iter()));
            }
            None => {
                left.push(*index);
                path.pop();
            }
        }
    }
}
