//! Requests on their way, what becomes of them, and their answers.

use super::*;

// === impl Request ===

impl Request {
    /// What it writes.
    pub(super) fn groups(&self) -> &[Vec<Write>] {
        match &self.what {
            What::Write(groups) => groups,
            What::ReadPtr(_) | What::RemoveNode(_) => &[],
        }
    }
}

// === impl Reply ===

impl Reply {
    /// Whether something may still be applied of what got no answer.
    fn is_unanswered(&self) -> bool {
        match self {
            Reply::Answers(answers, _) => {
                answers.iter().any(|(_, answer)| matches!(answer, Answer::Unanswered(_)))
            }
            Reply::Node(answer) => matches!(answer, NamespaceNodeAnswer::Unanswered(_)),
            Reply::Ptr(_) => false,
        }
    }
}

// === impl World ===

impl World {
    pub(super) fn arrives(&mut self, number: u64) {
        let Some(mut request) = self.requests.remove(&number) else { return };
        self.mind_the_dead(request.of);
        let why = || "told by the simulation".to_owned();
        let all = |answer: fn(String) -> Answer| {
            move |groups: &[Vec<Write>]| -> Vec<(RecordKey, Answer)> {
                groups.iter().flatten().map(|write| (write.key(), answer(why()))).collect()
            }
        };
        let reply = match &request.what {
            What::ReadPtr(key) => Some(Reply::Ptr(match request.fate {
                Fate::Applied | Fate::HalfFailed | Fate::HalfUnanswered => {
                    Ok(self.consul.kv.get(key).cloned())
                }
                _ => Err(why()),
            })),
            What::RemoveNode(namespace) => match request.fate {
                Fate::Failed | Fate::Denied => {
                    Some(Reply::Node(NamespaceNodeAnswer::Failed(why())))
                }
                Fate::Lost => Some(Reply::Node(NamespaceNodeAnswer::Unanswered(why()))),
                _ => match self.consul.look_at_node(namespace) {
                    Some(answer) => Some(Reply::Node(answer)),
                    None => {
                        if let Fate::AppliedLate(ms) = request.fate {
                            let what = What::RemoveNode(namespace.clone());
                            self.applied_late(&request, what, ms);
                            Some(Reply::Node(NamespaceNodeAnswer::Unanswered(why())))
                        } else {
                            self.after(TICK, Event::NodeGoes(number));
                            None
                        }
                    }
                },
            },
            What::Write(groups) => Some(match request.fate {
                _ if !self.consul.admits(request.session) => {
                    let answers = groups.iter().flatten().map(|it| (it.key(), Answer::Fenced));
                    Reply::Answers(answers.collect(), BTreeMap::new())
                }
                Fate::Applied => self.apply(groups, request.token),
                Fate::Denied => Reply::Answers(all(Answer::Denied)(groups), BTreeMap::new()),
                Fate::Failed => Reply::Answers(all(Answer::Failed)(groups), BTreeMap::new()),
                Fate::Lost => Reply::Answers(all(Answer::Unanswered)(groups), BTreeMap::new()),
                Fate::AppliedUnanswered => {
                    self.apply(groups, request.token);
                    Reply::Answers(all(Answer::Unanswered)(groups), BTreeMap::new())
                }
                Fate::AppliedLate(ms) => {
                    self.applied_late(&request, What::Write(groups.clone()), ms);
                    Reply::Answers(all(Answer::Unanswered)(groups), BTreeMap::new())
                }
                Fate::HalfFailed | Fate::HalfUnanswered => {
                    let (first, second) = groups.split_at(groups.len() / 2);
                    let Reply::Answers(mut answers, versions) = self.apply(first, request.token)
                    else {
                        unreachable!("writes have answers")
                    };
                    answers.extend(match request.fate {
                        Fate::HalfFailed => all(Answer::Failed)(second),
                        _ => all(Answer::Unanswered)(second),
                    });
                    Reply::Answers(answers, versions)
                }
            }),
        };
        if let Some(reply) = reply {
            request.reply = Some(reply);
            self.after(request.back, Event::Answered(number));
        }
        self.requests.insert(number, request);
    }

    pub(super) fn apply(&mut self, groups: &[Vec<Write>], token: u32) -> Reply {
        let mut answers = Vec::new();
        for group in groups {
            answers.extend(self.consul.write(group, token));
        }
        let applied = answers.iter().filter(|(_, answer)| matches!(answer, Answer::Applied { .. }));
        self.applied.extend(applied.clone().map(|(record, _)| record.clone()));
        let versions =
            applied.map(|(record, _)| (record.clone(), self.consul.version(record))).collect();
        Reply::Answers(answers, versions)
    }

    /// What a process has sent that is gone changes what others have read.
    pub(super) fn mind_the_dead(&mut self, of: Of) {
        if !self.is_current(of) {
            self.tampered += 1;
            self.consul.first_theirs.clear();
        }
        if !self.is_there(of) {
            self.disturbed = self.now;
        }
    }

    /// It is given up now, and applied so many milliseconds later.
    pub(super) fn applied_late(&mut self, request: &Request, what: What, ms: u16) {
        let late = Late { of: request.of, session: request.session, token: request.token, what };
        self.after(Duration::from_millis(ms.into()), Event::AppliedLate(late));
    }

    pub(super) fn apply_late(&mut self, late: &Late) {
        self.mind_the_dead(late.of);
        self.tampered += 1;
        if !self.consul.admits(late.session) {
            return;
        }
        match &late.what {
            What::Write(groups) => {
                self.apply(groups, late.token);
                if late.token != self.consul.token {
                    self.old_tokens.extend(groups.iter().flatten().map(Write::key));
                }
            }
            // What others put on it meanwhile would go with it: Consul has no check-and-set for that.
            What::RemoveNode(namespace) if self.consul.others_on.contains(namespace) => {}
            What::RemoveNode(namespace) => self.consul.remove_node(namespace),
            What::ReadPtr(_) => {}
        }
    }

    /// Nothing was on the node a moment ago.
    pub(super) fn node_goes(&mut self, number: u64) {
        let Some(mut request) = self.requests.remove(&number) else { return };
        self.mind_the_dead(request.of);
        let What::RemoveNode(namespace) = &request.what else { return };
        let is_unanswered = matches!(request.fate, Fate::AppliedUnanswered | Fate::HalfUnanswered);
        let answer = if self.consul.admits(request.session) {
            self.consul.remove_node(namespace);
            if is_unanswered {
                NamespaceNodeAnswer::Unanswered("told by the simulation".to_owned())
            } else {
                NamespaceNodeAnswer::Removed
            }
        } else {
            NamespaceNodeAnswer::Fenced
        };
        request.reply = Some(Reply::Node(answer));
        self.after(request.back, Event::Answered(number));
        self.requests.insert(number, request);
    }

    pub(super) fn answered(&mut self, number: u64) -> Checked {
        let Some(mut request) = self.requests.remove(&number) else { return Ok(()) };
        let Some(reply) = request.reply.take() else { return Ok(()) };
        let (of, flight, now) = (request.of, request.flight, self.now);
        let is_current = self.is_current(of);
        if !matches!(reply, Reply::Node(NamespaceNodeAnswer::Foreign { .. })) {
            self.processes[of.place].busy = now;
        }
        if !is_current {
            return Ok(());
        }
        let is_fenced = match &reply {
            Reply::Answers(answers, _) => answers.iter().any(|(_, it)| *it == Answer::Fenced),
            Reply::Node(answer) => *answer == NamespaceNodeAnswer::Fenced,
            Reply::Ptr(_) => false,
        };
        self.note_answer(of.place, &request, &reply);
        if is_fenced {
            // Whoever owns the core drops all that is under way, this answer too.
            return self.lost(of.place, false);
        }
        let core = &mut self.processes[of.place].core;
        match reply {
            Reply::Answers(answers, _) => core.handle_answers(flight, answers, now),
            Reply::Ptr(found) => core.handle_ptr_read(flight, &found, now),
            Reply::Node(answer) => core.handle_namespace_node(flight, answer, now),
        }
        self.turn(of.place)
    }

    /// What the process may know from now on.
    pub(super) fn note_answer(&mut self, place: usize, request: &Request, reply: &Reply) {
        let (now, consul) = (self.now, &self.consul);
        let term = &mut self.processes[place].term;
        term.end(request.flight);
        let mut writes: BTreeMap<RecordKey, &Write> = BTreeMap::new();
        match &request.what {
            What::Write(groups) => {
                writes.extend(groups.iter().flatten().map(|write| (write.key(), write)));
            }
            What::RemoveNode(namespace) => drop(term.removing.remove(namespace)),
            What::ReadPtr(_) => {}
        }
        if reply.is_unanswered() {
            term.unanswered = Some(now + MAY_STILL_APPLY);
        }
        let Reply::Answers(answers, versions) = reply else { return };
        for (record, answer) in answers {
            let write = writes[record];
            term.has_failures |= !matches!(answer, Answer::Applied { .. });
            match answer {
                Answer::Applied { .. } => {
                    let version = versions.get(record).copied().unwrap_or(u64::MAX);
                    if version == consul.version(record) {
                        let noted = (write.clone(), version, request.token);
                        term.certain.insert(record.clone(), noted);
                    }
                    if let Write::Register(it) | Write::Replace(it) = write {
                        term.held.extend(held_by(it));
                    }
                }
                Answer::Unanswered(_) => {
                    term.certain.remove(record);
                    if let RecordKey::Registration(id) = record
                        && let Some(service) = service_of_id(&self.settings.cluster, id)
                    {
                        let until = now + MAY_STILL_APPLY;
                        term.uncertain.push((until, service.namespace.clone()));
                        if let Write::Register(it) | Write::Replace(it) = write {
                            term.held.extend(held_by(it));
                        }
                    }
                }
                _ => drop(term.certain.remove(record)),
            }
        }
    }
}
