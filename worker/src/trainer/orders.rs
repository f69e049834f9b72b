//! What the trainer is told to do, and the orders that wait.

use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Duration;

use toroid_session::{Assignment, Command};

use crate::comm::Fence;
use crate::system;

/// What the trainer is told to do.
#[derive(Debug)]
pub enum Order {
    /// Fill this place; with the fence of its job.
    Prepare(Box<Assignment>, Fence),
    /// What else the session wants.
    Command(Command),
}

impl From<Command> for Order {
    fn from(command: Command) -> Order {
        Order::Command(command)
    }
}

/// The orders, with one that was taken too early put back.
pub(super) struct Inbox {
    orders: Receiver<Order>,
    put_back: Option<Order>,
}

impl Inbox {
    pub fn new(orders: Receiver<Order>) -> Inbox {
        Inbox { orders, put_back: None }
    }

    /// Puts an order back that was taken too early.
    pub fn put_back(&mut self, order: Order) {
        self.put_back = Some(order);
    }

    pub fn wait(&mut self) -> Option<Order> {
        if self.put_back.is_some() {
            return self.put_back.take();
        }
        let Some(system) = system::simulated() else { return self.orders.recv().ok() };
        loop {
            match self.orders.try_recv() {
                Ok(order) => return Some(order),
                Err(TryRecvError::Disconnected) => return None,
                Err(TryRecvError::Empty) => system.wait(None),
            }
        }
    }

    /// Waits for the next order for a while, and keeps it.
    pub fn wait_for(&mut self, time: Duration) {
        if self.put_back.is_some() {
            return;
        }
        self.put_back = match system::simulated() {
            None => self.orders.recv_timeout(time).ok(),
            Some(system) => {
                system.wait(Some(system.now() + time));
                self.orders.try_recv().ok()
            }
        };
    }

    pub fn try_next(&mut self) -> Result<Order, TryRecvError> {
        self.put_back.take().map_or_else(|| self.orders.try_recv(), Ok)
    }
}
